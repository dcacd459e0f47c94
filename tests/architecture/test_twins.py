"""Every guide page has a Chinese twin that shows the same code under headings of the same levels.

Fences are equal byte for byte, so the commands that test_guides.py runs for the English page are those of its twin.
README.md and README_zh.md are such a pair. A section has as many paragraphs in both languages, and each of the Chinese
ones has Han characters in it.
"""

from __future__ import annotations

import os
import re
from itertools import zip_longest
from pathlib import Path

import pytest

from .source import ROOT

ENGLISH, CHINESE = ROOT / "docs/guide", ROOT / "docs/guide/zh"
TWINS = [
    (ROOT / "README.md", ROOT / "README_zh.md"),
    *((page, CHINESE / page.name) for page in sorted(ENGLISH.glob("*.md")) if (CHINESE / page.name).exists()),
]
FENCE = re.compile(r"^```.*?^```[ \t]*$", re.DOTALL | re.M)
HAN = re.compile(r"[\u4e00-\u9fff]")


def sections(text: str) -> list[tuple[str, list[str]]]:
    """(heading line, paragraphs below it): no fence, indented code or line that is only a link is a paragraph."""
    rest = re.sub(r"^(?: {4}.*|\[[^]\n]*\]\([^)\n]*\))$", "", FENCE.sub("\n", text), flags=re.M)
    _, *parts = re.split(r"^(#+ .*)$", rest, flags=re.M)
    split = [[part.strip() for part in re.split(r"\n\s*\n", prose) if part.strip()] for prose in parts[1::2]]
    return list(zip(parts[::2], split, strict=True))


def first_difference(what: str, english: list[str], chinese: list[str]) -> str | None:
    """None when the lists are equal."""
    for number, (first, second) in enumerate(zip(english, chinese, strict=False), 1):
        if first != second:
            lines = zip_longest(first.splitlines(), second.splitlines(), fillvalue="(the end)")
            here, there = next(pair for pair in lines if pair[0] != pair[1])
            return f"{what} {number} differs:\n{here}\nis in Chinese\n{there}"
    if len(english) == len(chinese):
        return None
    number = min(len(english), len(chinese))
    longer, side = (english, "English") if len(english) > number else (chinese, "Chinese")
    return f"{what} {number + 1} is only in {side}:\n{longer[number]}"


def differences(english: str, chinese: str) -> list[str]:
    """What keeps two texts from being twins, in a reader's words; the first of each kind."""
    first, second = sections(english), sections(chinese)
    levels = [[title.split()[0] for title, _ in page] for page in (first, second)]
    unequal = [
        f"below {title!r}: {len(there)} paragraphs, {len(here)} in English"
        for (_, here), (title, there) in zip(first, second, strict=False)
        if len(here) != len(there)
    ]
    foreign = [f"not Chinese:\n{part}" for _, parts in second for part in parts if not HAN.search(part)]
    found = [
        first_difference("code fence", FENCE.findall(english), FENCE.findall(chinese)),
        first_difference("the level of heading", *levels),
        *unequal[:1],
        *foreign[:1],
    ]
    return [each for each in found if each]


def missing_link(page: Path, language: str, target: Path) -> str | None:
    """None when the link to the twin is what follows the title."""
    line = f"[{language}]({Path(os.path.relpath(target, page.parent)).as_posix()})"
    shown = [each for each in page.read_text(encoding="utf-8").splitlines() if each.strip()][:2]
    return None if shown[0].startswith("# ") and shown[1:] == [line] else f"{page.name}: put {line} under the title"


def test_every_guide_page_has_a_twin_and_the_other_way_round() -> None:
    english, chinese = ({page.name for page in folder.glob("*.md")} for folder in (ENGLISH, CHINESE))
    assert not english - chinese, f"write docs/guide/zh/{min(english - chinese)}"
    assert not chinese - english, f"docs/guide/zh/{min(chinese - english)} has no English page in docs/guide"


@pytest.mark.parametrize(("english", "chinese"), TWINS, ids=lambda page: page.stem)
def test_twins_differ_in_nothing_but_the_language(english: Path, chinese: Path) -> None:
    found = differences(english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8"))
    links = [missing_link(english, "中文", chinese), missing_link(chinese, "English", english)]
    found += [link for link in links if link]
    assert not found, f"{chinese.relative_to(ROOT)} and {english.relative_to(ROOT)}: {found[0]}"


PAGE = """\
# a

[中文](zh/a.md)

Say it.

```console
$ a
# no heading
```

## b

Again.

```python
b
```
"""
TWIN = PAGE.replace("[中文](zh/a.md)", "[English](../a.md)").replace("Say it.", "说一遍。").replace("Again.", "再说。")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("$ a", "$ b", "code fence 1 differs:\n$ a\nis in Chinese\n$ b"),
        ("```console", "```console skip", "code fence 1 differs:\n```console\nis in Chinese\n```console skip"),
        ("```python\nb\n```\n", "", "code fence 2 is only in English:\n```python"),
        ("## b", "### b", "the level of heading 2 differs:\n##\nis in Chinese\n###"),
        ("## b\n", "", "the level of heading 2 is only in English:\n##"),
        ("再说。", "再说。\n\n## 丙\n", "the level of heading 3 is only in Chinese:\n##"),
        ("再说。", "", "below '## b': 0 paragraphs, 1 in English"),
        ("再说。", "Again.", "not Chinese:\nAgain."),
        ("说一遍。", "Say it.", "not Chinese:\nSay it."),
    ],
)
def test_a_difference_is_named(old: str, new: str, said: str) -> None:
    assert differences(PAGE, TWIN) == []
    found = differences(PAGE, TWIN.replace(old, new, 1))
    assert found and found[0].startswith(said), found


def test_the_link_to_the_twin_stands_under_the_title(tmp_path: Path) -> None:
    page, twin = tmp_path / "a.md", tmp_path / "zh/a.md"
    twin.parent.mkdir()
    page.write_text(PAGE, encoding="utf-8")
    twin.write_text(TWIN.replace("../a.md", "a.md"), encoding="utf-8")
    assert missing_link(page, "中文", twin) is None
    assert missing_link(twin, "English", page) == "a.md: put [English](../a.md) under the title"
