"""`leveret run`: a recipe's stages in order, each once."""

from __future__ import annotations

from typing import Any

from leveret.commands import StageResult
from leveret.console import Console
from leveret.pipeline.config import RunConfig
from leveret.pipeline.execute import Options, execute
from leveret.recipe import load_recipe


def run(config: RunConfig, console: Console) -> StageResult:
    """Check the recipe, then run what is not done."""
    options = Options(
        again_from=config.again_from,
        until=config.until,
        keep_after_code_changes=config.code_changes == "keep",
        isolate=config.isolate,
    )
    return execute(load_recipe(config.recipe, config.overrides), options, console)


def resolve(config: RunConfig) -> dict[str, Any]:
    """The recipe with all defaults, for `--dry-run`."""
    return load_recipe(config.recipe, config.overrides).as_data()
