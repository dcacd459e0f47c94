"""docs/traps.md lists every known trap once, and each test that it names exists."""

from __future__ import annotations

import ast
import re

from .source import ROOT

PAGE = ROOT / "docs" / "traps.md"
NUM_TRAPS = 45
OF_TRAINING = {*range(1, 8), *range(10, 16), *range(17, 24), *range(26, 31), 42, 44, 45}
"""Those that a training run can fall into; preferences (16) and reinforcement learning (31, 32) are not trained yet."""
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \|$", re.M)
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows() -> list[tuple[int, str]]:
    """(number, what the last column says) of each trap."""
    return [(int(number), test) for number, _, test in ROW.findall(PAGE.read_text(encoding="utf-8"))]


def test_every_trap_has_one_row() -> None:
    assert sorted(number for number, _ in rows()) == list(range(1, NUM_TRAPS + 1))


def test_a_row_names_a_test_or_says_not_yet() -> None:
    bare = [number for number, text in rows() if not TEST.search(text) and "not yet: " not in text]
    assert not bare


def test_every_trap_of_training_has_a_test() -> None:
    tested = {number for number, text in rows() if TEST.search(text)}
    assert tested >= OF_TRAINING


def test_every_test_named_in_the_documents_exists() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for file, name in TEST.findall(page.read_text(encoding="utf-8")):
            path = ROOT / "tests" / file
            assert path.exists(), f"{page.name}: there is no tests/{file}"
            functions = {
                node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
            }
            assert name in functions, f"{page.name}: tests/{file} has no {name}"
