"""Start a recipe or a training command in several processes, and wait for all of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from leveret.commands import COMMANDS, StageResult
from leveret.config import suggest
from leveret.console import Console
from leveret.errors import ConfigError, DataError, HubError, LeveretError, Stopped, TrainingError
from leveret.launch.config import LaunchConfig
from leveret.launch.together import run_together
from leveret.launch.torchrun import starts_of
from leveret.recipe import load_recipe


def run(config: LaunchConfig, console: Console) -> StageResult:
    """Check what can be checked here, start one torchrun for each machine, and end all when one fails."""
    inner = inner_words(config.words)
    _check_recipe(inner)
    starts = starts_of(config, inner, os.environ)
    for start in starts:
        console.info(f"{start.host}: {start}")
    for attempt in range(config.restarts + 1):
        code, ended_by = run_together(starts, grace_seconds=config.grace_seconds, console=console)
        if ended_by == signal.SIGINT:
            raise KeyboardInterrupt
        if ended_by is not None:
            raise Stopped("asked to stop", hint="run the same command again to go on from there")
        if code == 0:
            return StageResult(output=None, summary={"machines": len(starts), "restarts": attempt})
        if code in _HOPELESS:
            break
        if attempt < config.restarts:
            console.warn(f"starting everything again ({attempt + 1} of {config.restarts})")
    kind = _HOPELESS.get(code, TrainingError)
    raise kind(
        f"a process of {' '.join(('leveret', *inner))} failed, and the others were ended",
        hint="its message is above"
        + ("" if code in _HOPELESS else "; the same command goes on from the last checkpoint"),
    )


_HOPELESS: dict[int, type[LeveretError]] = {error.exit_code: error for error in (ConfigError, DataError, HubError)}
"""Exit codes of what will fail in the same way when it is tried again."""


def resolve(config: LaunchConfig) -> dict[str, Any]:
    """The commands that would be executed, for `--dry-run`; mistakes are told as by the launch itself."""
    inner = inner_words(config.words)
    _check_recipe(inner)
    starts = starts_of(config, inner, os.environ)
    return {"starts": [{"machine": start.host, "command": str(start)} for start in starts]}


def inner_words(words: tuple[str, ...]) -> list[str]:
    """What follows `leveret` in each process: a recipe is run. ConfigError when the command does not run in several."""
    if Path(words[0]).suffix in (".yaml", ".yml"):
        return ["run", *words]
    able = [name for name, command in COMMANDS.items() if command.parallel]
    if words[0] not in able:
        near = suggest(words[0], able)
        raise ConfigError(
            f"'{words[0]}' is neither a recipe (.yaml) nor a command that runs in several processes "
            f"({', '.join(able)})" + (f"; did you mean {near}?" if near else "")
        )
    return list(words)


def _check_recipe(inner: list[str]) -> None:
    """Mistakes in a recipe are told here, once, and not by every process."""
    if inner[0] not in ("run", "rehearse") or len(inner) < 2:
        return
    own = COMMANDS[inner[0]].load_config().model_fields
    overrides = [word for word in inner[2:] if word.partition("=")[0].replace("-", "_") not in own]
    load_recipe(Path(inner[1]), overrides, rehearsal=inner[0] == "rehearse")
