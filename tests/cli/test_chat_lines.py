"""What counts as one message, on a terminal and from a pipe, and what is remembered."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leveret.cli.chat_lines import assembled, history, messages


def made_of(lines: list[str | type[KeyboardInterrupt]], *, typed: bool = True) -> list[str]:
    feed: Iterator[str | type[KeyboardInterrupt]] = iter(lines)

    def read(inside: bool) -> str | None:
        line = next(feed, None)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line  # type: ignore[return-value]

    return list(assembled(read, typed=typed))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a", " b "], ["a", "b"]),
        (["a\\", "b\\", "c", "d"], ["a\nb\nc", "d"]),
        (['"""', "a", "", "b", '"""', "c"], ["a\n\nb", "c"]),
        (['"""a', 'b"""'], ["a\nb"]),
        (['"""a"""', "b"], ["a", "b"]),
        (['"""', 'say "hi"', '"""'], ['say "hi"']),
        (['"""', "no end"], ["no end"]),
        (["a\\"], ["a"]),
        ([""], [""]),
    ],
)
def test_lines_make_messages(lines: list[str | type[KeyboardInterrupt]], expected: list[str]) -> None:
    assert made_of(lines) == expected


def test_ctrl_c_drops_what_was_begun_and_does_not_leave(capsys: pytest.CaptureFixture[str]) -> None:
    assert made_of(["a\\", KeyboardInterrupt, "b", KeyboardInterrupt, "c"]) == ["b", "c"]
    assert "Ctrl-D or /exit leaves" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        made_of([KeyboardInterrupt], typed=False)


def test_a_piped_backslash_is_a_backslash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('\ufeffC:\\\nnext\n"""\ntwo\nlines\n"""\n'))
    assert list(messages()) == ["C:\\", "next", "two\nlines"]


def test_history_is_kept_between_sessions_for_the_owner_alone(tmp_path: Path) -> None:
    readline = pytest.importorskip("readline")
    file = tmp_path / "cache" / "chat_history"
    with history(file):
        readline.add_history("first")
    with history(file):
        assert readline.get_history_item(1) == "first"
        readline.add_history("第二")
    assert file.stat().st_mode & 0o077 == 0
    with history(file):
        assert [readline.get_history_item(place) for place in (1, 2)] == ["first", "第二"]
    readline.clear_history()


def test_a_cache_that_cannot_be_written_costs_the_history_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with history(tmp_path / "file" / "chat_history"):
        pass


def read_until(terminal: int, end: bytes) -> bytes:
    shown, deadline = b"", time.monotonic() + 10
    while end not in shown and time.monotonic() < deadline:
        shown += os.read(terminal, 1000)
    return shown


def test_the_arrow_key_brings_back_an_earlier_message(tmp_path: Path) -> None:
    pytest.importorskip("readline")
    code = "from leveret.cli.chat_lines import messages\nfor line in messages(): print(f'[{line}]', flush=True)"
    main, side = pty.openpty()
    environment = os.environ | {"LEVERET_CACHE": str(tmp_path), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=side, stdout=side, stderr=side, env=environment)
    os.close(side)
    try:
        read_until(main, b"> ")
        for keys, answer in ((b"hello\r", b"[hello]"), (b"bye\r", b"[bye]"), (b"\x1b[A\x1b[A\r", b"[hello]")):
            os.write(main, keys)
            assert answer in read_until(main, b"]\r\n> ")
        os.write(main, b"\x04")
        assert process.wait(10) == 0
    finally:
        process.kill()
        os.close(main)
    assert (tmp_path / "chat_history").read_text().split() == ["hello", "bye", "hello"]
