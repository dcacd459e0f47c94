"""Where a module lists its public names, the list is exact and sorted."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from .source import module_name, parsed, python_files


def listed(file: Path) -> list[str] | None:
    for node in parsed(file).body:
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


@pytest.mark.parametrize("file", [file for file in python_files() if listed(file) is not None], ids=module_name)
def test_the_list_of_public_names_is_exact(file: Path) -> None:
    names = listed(file) or []
    assert names == sorted(names)
    module = importlib.import_module(module_name(file))
    for name in names:
        assert getattr(module, name, None) is not None, f"{name} does not exist"
    defined = {
        node.name
        for node in parsed(file).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert defined <= set(names), f"not listed: {sorted(defined - set(names))}"
