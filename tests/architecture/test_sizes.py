"""Files and functions stay small enough to read; rooms for odds and ends are not built."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .source import module_name, parsed, python_files

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
FORBIDDEN = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core", "shared"}

LONG_FILES: dict[str, str] = {}
"""Module -> why it may be longer."""
LONG_FUNCTIONS: dict[str, str] = {}
"""Module.function -> why it may be longer."""


@pytest.mark.parametrize("file", python_files(), ids=module_name)
def test_a_file_is_short_or_listed_with_a_reason(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES or module_name(file) in LONG_FILES, f"{lines} lines: split it"


@pytest.mark.parametrize("file", python_files(), ids=module_name)
def test_a_function_fits_on_a_screen_or_is_listed_with_a_reason(file: Path) -> None:
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            name = f"{module_name(file)}.{node.name}"
            assert lines <= MAX_FUNCTION_LINES or name in LONG_FUNCTIONS, f"{name} has {lines} lines"


def test_no_room_for_odds_and_ends() -> None:
    for file in python_files():
        assert not FORBIDDEN & set(module_name(file).split(".")), f"{file}: name it by what it is"


def test_nothing_is_left_to_do() -> None:
    for file in python_files():
        text = file.read_text(encoding="utf-8")
        for mark in ("TODO", "FIXME", "XXX", "NotImplementedError"):
            assert mark not in text, f"{file} has a {mark}"


def test_the_lists_hold_nothing_that_is_gone() -> None:
    modules = {module_name(file) for file in python_files()}
    assert set(LONG_FILES) <= modules
    assert {name.rpartition(".")[0] for name in LONG_FUNCTIONS} <= modules
