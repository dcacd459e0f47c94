"""What is typed into `leveret chat`: whole messages, with history and editing on a terminal, from a pipe as they come.

    a line                     is a message
    a line that ends in \\      goes on in the next one (on a terminal)
    \"\"\" ... \"\"\"                everything between is one message of several lines, also from a pipe

The arrow keys find earlier messages, also those of earlier sessions: they are kept in `chat_history` in the cache
folder, readable by its owner alone. Python without `readline` (Windows) has neither editing nor history, and works.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from leveret.paths import cache_dir

FENCE = '"""'
MOST_KEPT = 1000
"""Messages in the history file."""


def messages() -> Iterator[str]:
    """Messages from the standard input until it ends. On a terminal, Ctrl-C drops what is half typed."""
    if not sys.stdin.isatty():
        yield from assembled(_piped_line, typed=False)
        return
    with history():
        yield from assembled(_typed_line, typed=True)


def assembled(read: Callable[[bool], str | None], *, typed: bool) -> Iterator[str]:
    """Messages made of lines; `read(inside)` gives the next line, or None at the end; inside: a message has begun.

    typed: by a person, so that a backslash at a line's end carries on and KeyboardInterrupt drops what was begun.
    """
    parts: list[str] = []
    fenced = False
    while True:
        try:
            line = read(bool(parts) or fenced)
        except KeyboardInterrupt:
            if not typed:
                raise
            print("\n(Ctrl-D or /exit leaves)")
            parts, fenced = [], False
            continue
        if line is None:
            break
        if not parts and not fenced and line.lstrip().startswith(FENCE):
            fenced, line = True, line.lstrip().removeprefix(FENCE)
            if not line.strip():
                continue
        if fenced and not line.rstrip().endswith(FENCE):
            parts.append(line)
            continue
        if fenced:
            line = line.rstrip().removesuffix(FENCE)
        elif typed and line.endswith("\\"):
            parts.append(line[:-1])
            continue
        yield "\n".join([*parts, line]).strip()
        parts, fenced = [], False
    if parts:
        yield "\n".join(parts).strip()


@contextlib.contextmanager
def history(path: Path | None = None) -> Iterator[None]:
    """Line editing and history, from and to a file, while the block runs. Without `readline` it does nothing."""
    try:
        import readline  # importing it is what gives input() editing
    except ImportError:
        yield
        return
    path = path or cache_dir() / "chat_history"
    _read(readline, path)
    try:
        yield
    finally:
        _write(readline, path)


def _read(readline: ModuleType, path: Path) -> None:
    readline.clear_history()
    with contextlib.suppress(OSError):  # there is none yet
        readline.read_history_file(path)
    readline.set_history_length(MOST_KEPT)


def _write(readline: ModuleType, path: Path) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the history, not the conversation
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        readline.write_history_file(path)


def _piped_line(inside: bool) -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\n").removeprefix("\ufeff") if line else None  # a byte order mark, as PowerShell's pipes have


def _typed_line(inside: bool) -> str | None:
    try:
        return input("... " if inside else "> ")
    except EOFError:
        print()
        return None
