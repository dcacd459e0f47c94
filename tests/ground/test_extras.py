"""A missing optional package is named with the pip command that brings it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from leveret.errors import MissingExtra
from leveret.extras import require


def test_an_installed_module_is_returned() -> None:
    assert require("json.decoder", extra="serve", purpose="x").__name__ == "json.decoder"


def test_a_missing_package_is_named_with_its_command() -> None:
    with pytest.raises(MissingExtra) as caught:
        require("no_such_package.inner", extra="serve", purpose="the server")
    assert str(caught.value) == (
        "the server needs the package 'no_such_package', which is not installed\nhint: pip install \"leveret[serve]\""
    )


def test_a_package_that_is_broken_keeps_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("import something_else_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_else_that_is_missing"):
        require("broken_package", extra="serve", purpose="x")


def test_every_extra_that_is_named_exists() -> None:
    root = Path(__file__).parents[2]
    there = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        extra
        for file in (root / "src").rglob("*.py")
        for extra in re.findall(r'require\([^)]*extra="([\w-]+)"', file.read_text("utf-8"))
    }
    assert {"serve", "data", "tracking"} <= named <= set(there)
