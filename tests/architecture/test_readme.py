"""The two READMEs say the same: equal code, equal figures, links that lead somewhere, commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leveret.commands import COMMANDS

from .source import ROOT

READMES = [ROOT / "README.md", ROOT / "README_zh.md"]


def test_both_languages_have_the_same_code_and_the_same_commands() -> None:
    english, chinese = (page.read_text(encoding="utf-8") for page in READMES)
    for pattern in (r"^```.*?^```", r"`leveret [^`]+`", r"\]\(([^)#]+)\)"):
        flags = re.DOTALL | re.M
        first, second = re.findall(pattern, english, flags), re.findall(pattern, chinese, flags)
        swapped = [{"README_zh.md": "README.md"}.get(found, found) for found in first]
        assert swapped == second


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.stem)
def test_its_commands_exist(page: Path) -> None:
    named = set(re.findall(r"(?:[`|] ?|^\$ )leveret (?!has )([a-z]+)\b", page.read_text(encoding="utf-8"), re.M))
    assert named <= set(COMMANDS), named - set(COMMANDS)
    assert set(COMMANDS) <= named, f"not shown: {set(COMMANDS) - named}"


@pytest.mark.parametrize(
    "page",
    [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
