"""`leveret rehearse`: the whole recipe for real, but small, in a folder of its own, from the start each time."""

from __future__ import annotations

import shutil
from typing import Any

from leveret.commands import StageResult
from leveret.console import Console
from leveret.errors import ConfigError
from leveret.pipeline.config import RehearseConfig
from leveret.pipeline.execute import Options, execute
from leveret.pipeline.ledger import Ledger
from leveret.pipeline.lock import locked
from leveret.ranks import Ranks
from leveret.recipe import Recipe, load_recipe


def run(config: RehearseConfig, console: Console) -> StageResult:
    """Remove the last rehearsal, shrink every config as it declares, and run all stages."""
    recipe = load_recipe(config.recipe, config.overrides, rehearsal=True)
    ranks = Ranks.from_environment()
    if ranks is None or ranks.is_main:
        _clear(recipe)
    result = execute(recipe, Options(isolate=config.isolate), console)
    overrides = "".join(f" {override}" for override in config.overrides)
    console.info(f"every stage works; the real run is: leveret run {config.recipe}{overrides}")
    return result


def resolve(config: RehearseConfig) -> dict[str, Any]:
    """The shrunken recipe, for `--dry-run`."""
    return load_recipe(config.recipe, config.overrides, rehearsal=True).as_data()


def _clear(recipe: Recipe) -> None:
    """Remove only what a rehearsal has made, and has ended."""
    if not recipe.output.exists() or not any(recipe.output.iterdir()):
        return
    if not Ledger(recipe.output).exists():
        raise ConfigError(
            f"{recipe.output} is needed for the rehearsal, but something else is there", hint="move it, or set output="
        )
    with locked(recipe.output / ".lock"):
        shutil.rmtree(recipe.output)
