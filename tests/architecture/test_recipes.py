"""Every recipe is right, as it stands and as a rehearsal."""

from __future__ import annotations

from pathlib import Path

import pytest

from leveret.recipe import load_recipe

from .source import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("rehearsal", [False, True], ids=["real", "rehearsal"])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_parses(path: Path, rehearsal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_recipe(path, rehearsal=rehearsal).stages
