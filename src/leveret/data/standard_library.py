"""Real text that lies on every machine with Python: the standard library's sources and its language reference.

Sources are documents as they stand, without tests and data tables. The reference is what `help("while")` shows, a few
hundred pages of English prose. Both are under the PSF license and are read where they are, never copied into a project.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from leveret.data.examples import Document

LEFT_OUT = frozenset(
    (
        *("test", "tests", "idle_test", "turtledemo", "lib2to3"),
        *("site-packages", "dist-packages", "__pycache__"),
        *("encodings", "pydoc_data"),
    )
)
"""Folders without prose or code that teaches: tests and demonstrations, installed packages, tables."""


def standard_library_documents() -> Iterator[Document]:
    """The documents in a fixed order: the language reference by topic, then the modules by path."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(text=topics[name], source=f"help({name!r})")
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(_modules(root)):
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield Document(text=text, source=path.relative_to(root).as_posix())


def _modules(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - LEFT_OUT)
        yield from (Path(folder, name) for name in files if name.endswith(".py"))
