"""`leveret validate`: every mistake in recipes and configs, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leveret.commands import COMMANDS, StageResult
from leveret.config import mistakes, parse_config, read_yaml, suggest
from leveret.console import Console
from leveret.errors import ConfigError
from leveret.pipeline.config import ValidateConfig
from leveret.pipeline.inputs import missing_inputs
from leveret.recipe import load_recipe, quantized_starts


def run(config: ValidateConfig, console: Console) -> StageResult:
    """Check each file; raise one ConfigError with all that is wrong in all of them."""
    problems = []
    for file in config.files:
        try:
            console.print(f"{file}: fine ({_check(file, config.command, console)})")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return StageResult(output=None, summary={"files": len(config.files)})


def _check(file: Path, command: str | None, console: Console) -> str:
    """What the file is, or a ConfigError."""
    data = read_yaml(file)
    if "stages" in data and command is None:
        recipe = load_recipe(file)
        for missing in missing_inputs(recipe):
            console.warn(f"{file}: {missing}; a run would not start")
        return f"a recipe of {len(recipe.stages)} stages: {', '.join(stage.name for stage in recipe.stages)}"
    name = _known(command) if command is not None else _best_fit(data)
    source = f"{file} (read as a config of `{name}`)"
    if found := list(quantized_starts(parse_config(COMMANDS[name].load_config(), data, source=source))):
        raise ConfigError(f"{source}: {'; '.join(found)}")
    return f"a config of `{name}`"


def _known(command: str) -> str:
    if command in COMMANDS:
        return command
    near = suggest(command, COMMANDS)
    raise ConfigError(f"there is no command '{command}'", hint=f"did you mean {near}?" if near else None)


def _best_fit(data: dict[str, Any]) -> str:
    """The command whose config has the fewest mistakes with `data`; of equals, the one that knows more of its keys."""

    def misfit(name: str) -> tuple[int, int]:
        model = COMMANDS[name].load_config()
        return len(mistakes(model, data)), -len(set(data) & set(model.model_fields))

    writers = [name for name, command in COMMANDS.items() if "output" in command.load_config().model_fields]
    return min(writers, key=misfit)
