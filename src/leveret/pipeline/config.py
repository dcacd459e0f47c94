"""RunConfig, RehearseConfig and ValidateConfig: what the commands for recipes take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from leveret.config import Config, Positional


class RunConfig(Config):
    """Stages run in order. A stage that is done, with the same config, inputs and code, is skipped; a stage that
    was interrupted goes on. Everything is in the recipe's output folder, with log.txt and stages/*.json."""

    recipe: Annotated[Path, Positional(0)]
    """The recipe (YAML)."""
    overrides: Annotated[tuple[str, ...], Positional(1)] = ()
    """Changes to the recipe: seed=1, or STAGE.key=value such as pretrain.training.max_steps=10."""
    again_from: str | None = None
    """Do this stage and all after it again, even if they are done; the old output is set aside."""
    until: str | None = None
    """Stop after this stage."""
    code_changes: Literal["rerun", "keep"] = "rerun"
    """What a change in leveret's own code means for stages done or begun before it: do them again, or keep them."""
    isolate: bool = True
    """Give each stage a process of its own: same start state, memory returned. Off: all here, for a debugger."""


class RehearseConfig(Config):
    """The whole recipe for real, in `OUTPUT-rehearsal`, with the small numbers that each config declares for it: few
    layers, few steps, few rows. Mistakes that would end a long run show here, in seconds."""

    recipe: Annotated[Path, Positional(0)]
    """The recipe (YAML)."""
    overrides: Annotated[tuple[str, ...], Positional(1)] = ()
    """Changes to the recipe: seed=1, or STAGE.key=value."""
    isolate: bool = True
    """Give each stage a process of its own. Off: all here, for a debugger."""


class ValidateConfig(Config):
    """Checks without running: every key, value, stage name and reference; all mistakes are printed at once."""

    files: Annotated[tuple[Path, ...], Positional(0)] = Field(min_length=1)
    """Recipes, or configs of single commands."""
    command: str | None = None
    """The command that the configs are for; by default the one they fit best."""
