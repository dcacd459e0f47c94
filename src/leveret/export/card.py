"""What was exported, told in README.md in English and Chinese: files, sizes, commands.

The folder written has a card: the model's own if it has one, else a short one. Only the part between the two marks is
put in or replaced, so what a person or `leveret certify` wrote stays. Another card may be named that mentions the
export as well: there, exports of other kinds keep their part.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.hub import name_of
from leveret.paths import atomic_write


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One export."""

    program: str
    """Who loads it."""
    files: Mapping[str, int]
    """Name -> size in bytes."""
    commands: Mapping[str, str]
    """Ways to run it, by name."""
    told: str
    """All in one line."""
    summary: Mapping[str, Any]
    """Figures for the pipeline's record."""


def write_cards(made: Exported, draft: Path, source: Path, card: Path | None) -> None:
    """README.md in the folder written, and the part about this export in `card`."""
    own = draft / "README.md"
    if (source / "README.md").is_file():
        shutil.copyfile(source / "README.md", own)
    text = own.read_text("utf-8") if own.is_file() else f"# {name_of(source)}\n"
    atomic_write(own, with_export(text, made))
    if card is not None:
        there = card.read_text("utf-8") if card.is_file() else f"# {name_of(source)}\n"
        atomic_write(card, with_export(there, made))


def with_export(text: str, made: Exported) -> str:
    """A card with the part about this export, in place of an older one about the same programs."""
    begin, end = f"<!-- export: {made.program} -->", f"<!-- end of export: {made.program} -->"
    part = f"{begin}\n{section(made)}\n{end}"
    old = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if old.search(text):
        return old.sub(lambda _: part, text, count=1)
    return f"{text.rstrip()}\n\n{part}\n"


def section(made: Exported) -> str:
    """The part, English first."""
    rows = [f"| `{name}` | {size / 1e6:,.1f} MB |" for name, size in made.files.items()]
    commands = "\n".join(f"# {name}\n{line}" for name, line in made.commands.items())
    return "\n".join(
        [f"## For {made.program} · 用于 {made.program}", "", "| file · 文件 | size · 大小 |", "|---|---|", *rows, "",
         "Commands, in the folder of the files · 在文件所在的文件夹里运行：", "", "```sh", commands, "```"]
    )  # fmt: skip
