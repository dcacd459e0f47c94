"""ARCHITECTURE.md's tree is the tree on the disk, and each of its sentences is the file's own first line."""

from __future__ import annotations

from pathlib import Path

import pytest

from .source import ROOT, first_line, module_name, python_files
from .tree import BEGIN, END, PAGE, page_with_tree


def test_the_page_has_the_tree_of_the_disk() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert BEGIN in page and END in page
    assert page == page_with_tree(page), "run `make tree`"


@pytest.mark.parametrize("file", python_files(), ids=module_name)
def test_a_file_begins_by_saying_what_it_is_in_one_sentence(file: Path) -> None:
    line = first_line(file)
    assert 15 <= len(line) <= 130, f"{file.relative_to(ROOT)}: {line!r}"
    assert line.endswith((".", "?")), f"{file.relative_to(ROOT)}: {line!r} does not end its sentence on its first line"


def test_tests_mirror_the_source() -> None:
    """Every folder of the package has a folder of tests; ground's files share one."""
    folders = {file.parent.name for file in python_files() if file.parent.parent.name == "leveret"}
    tests = {folder.name for folder in (ROOT / "tests").iterdir() if any(folder.glob("test_*.py"))}
    assert folders <= tests, f"no tests for {sorted(folders - tests)}"
    assert "ground" in tests
