"""What a recipe reads that is not there: told before its first stage, not hours later when its own stage begins.

A path counts as there when it is, when an earlier stage writes it or something above or below it, and when it holds the
run's own folder. Of a model that is named by a text, only what cannot be a hub's name is known to be a path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leveret.config import Config
from leveret.hub import is_repository
from leveret.recipe import Recipe

WRITTEN = ("output", "card")
"""Keys that name what a stage writes."""

MODELS = ("model", "models", "init_from", "base", "draft_model")
"""Keys of texts that name a folder, or a model of a hub; `reader:FOLDER` and `MODEL+ADAPTER` are not looked into."""

TEMPLATE = "template"
"""The key of a text that names a file, or a template that is built in."""


def missing_inputs(recipe: Recipe, until: str | None = None) -> Iterator[str]:
    """The mistakes, each with its stage and key; `until`: the last stage to be asked."""
    written = [recipe.output.absolute()]
    for stage in recipe.stages:
        own = [path.absolute() for key in WRITTEN if isinstance(path := getattr(stage.config, key, None), Path)]
        places = [*written[1:], *own]
        for key, path in _inputs(stage.config):
            there = path.absolute()
            begun = any(there.is_relative_to(place) or place.is_relative_to(there) for place in places)
            if not path.exists() and not begun and not written[0].is_relative_to(there):
                yield f"stage {stage.name}: {key}: there is no {path}, and no earlier stage writes it"
        written += own
        if stage.name == until:
            return


def _inputs(config: Config) -> Iterator[tuple[str, Path]]:
    """The keys and paths of what a config reads."""
    remote = "://" in str(getattr(config, "backend", ""))
    for name, value in dict(config).items():
        if name in WRITTEN:
            continue
        for key, item in _leaves(name, value):
            if isinstance(item, Path) or (isinstance(item, str) and _is_path(name, item) and not remote):
                yield key, Path(os.path.expanduser(item))


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Config):
        value = dict(value)
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _leaves(f"{key}.{place}", inner)
    else:
        yield key, value


def _is_path(name: str, text: str) -> bool:
    if name == TEMPLATE:
        return bool(Path(text).suffix) or "/" in text
    return name in MODELS and "/" in text and not {":", "+"} & set(text) and not is_repository(text)
