"""What a recipe reads that is not there: told before its first stage, not hours later when its own stage begins.

A path counts as there when it is, when an earlier stage writes it or something above or below it, and when it holds the
run's own folder. Of a model that is named by a text, only what cannot be a hub's name is known to be a path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from leveret.config import Config
from leveret.hub import is_repository
from leveret.pipeline.dependencies import leaves
from leveret.recipe import Recipe

WRITTEN = ("output", "card")
"""Keys that name what a stage writes."""

MODELS = ("model", "models", "init_from", "base", "draft_model")
"""Keys of texts that name a folder, or a model of a hub; `reader:FOLDER` and `MODEL+ADAPTER` are not looked into."""

TEMPLATE = "template"
"""The key of a text that names a file, or a template that is built in."""


def missing_inputs(recipe: Recipe, until: str | None = None) -> Iterator[str]:
    """The mistakes, each with its stage and key; `until`: the last stage to be asked."""
    written: list[Path] = []
    """By the stages so far, and by the stage itself."""
    for stage in recipe.stages:
        written += [path.absolute() for key in WRITTEN if isinstance(path := getattr(stage.config, key, None), Path)]
        for key, path in _inputs(stage.config):
            there = path.absolute()
            holds_output = any(place.is_relative_to(there) for place in (recipe.output.absolute(), *written))
            if not path.exists() and not holds_output and not any(map(there.is_relative_to, written)):
                yield f"stage {stage.name}: {key}: there is no {path}, and no earlier stage writes it"
        if stage.name == until:
            return


def _inputs(config: Config) -> Iterator[tuple[str, Path]]:
    """The keys and paths of what a config reads."""
    remote = "://" in str(getattr(config, "backend", ""))
    for key, value in leaves(config, without=WRITTEN):
        if isinstance(value, Path) or (
            isinstance(value, str) and not remote and _is_path(key.partition(".")[0], value)
        ):
            yield key, Path(os.path.expanduser(value))


def _is_path(name: str, text: str) -> bool:
    if name == TEMPLATE:
        return bool(Path(text).suffix) or "/" in text
    return name in MODELS and "/" in text and not {":", "+"} & set(text) and not is_repository(text)
