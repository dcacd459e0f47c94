"""What pyproject.toml promises: files that modules read are in the wheel, and extras that messages name exist."""

from __future__ import annotations

import ast
import fnmatch
import tomllib
from collections.abc import Iterator
from typing import Any

from .source import ROOT, SOURCE, parsed, python_files


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packaged() -> list[str]:
    """The patterns under [tool.setuptools.package-data], which hold for every package."""
    patterns: list[str] = project()["tool"]["setuptools"]["package-data"]["*"]
    return patterns


def read_files() -> list[str]:
    """Files of the package that are neither modules nor made of them."""
    files = (file for file in SOURCE.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return [str(file.relative_to(SOURCE)) for file in files if file.suffix not in (".py", ".so")]


def test_every_file_that_is_read_is_packaged() -> None:
    files = read_files()
    assert "plan/devices.yaml" in files
    left_out = [name for name in files if not any(fnmatch.fnmatch(name.rpartition("/")[2], one) for one in packaged())]
    assert left_out == []


def test_no_pattern_is_for_nothing() -> None:
    names = [name.rpartition("/")[2] for name in read_files()]
    assert [one for one in packaged() if not fnmatch.filter(names, one)] == []


def named_extras() -> Iterator[str]:
    """The `extra` of every call of `require`."""
    for file in python_files():
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                (extra,) = (keyword.value for keyword in node.keywords if keyword.arg == "extra")
                assert isinstance(extra, ast.Constant), f"{file}:{node.lineno}: the extra is not written out"
                if extra.value is not None:
                    yield extra.value


def test_every_extra_that_a_message_names_exists() -> None:
    named = set(named_extras())
    assert {"serve", "gguf", "transformers"} <= named
    assert named <= set(project()["project"]["optional-dependencies"])
