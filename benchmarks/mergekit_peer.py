"""mergekit, told to do the merges of `merge_cpu.py`: in this process, or as the command that people start."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

METHODS = ("linear", "slerp", "task-arithmetic", "ties")
DENSITY = 0.2
OPTIONS = {
    "lazy_unpickle": True,
    "low_cpu_memory": True,
    "async_write": True,
    "copy_tokenizer": False,
    "write_model_card": False,
    "quiet": True,
}


class Plan(Protocol):
    """What is merged: two models `a` and `b` of `folder`, and a base for the methods that have one."""

    method: str
    folder: Path
    peer_dtype: str

    @property
    def base(self) -> Path | None: ...


def recipe(plan: Plan) -> dict[str, Any]:
    """The merge in mergekit's words."""
    a, b = (str(plan.folder / name) for name in "ab")
    told: dict[str, Any] = {"merge_method": plan.method.replace("-", "_"), "dtype": plan.peer_dtype}
    told |= {"out_dtype": "bfloat16"}
    if plan.method == "slerp":
        return told | {"base_model": a, "models": [{"model": a}, {"model": b}], "parameters": {"t": 0.5}}
    if plan.method == "linear":
        weights = {"a": 0.4, "b": 0.6}
        models = [{"model": path, "parameters": {"weight": weights[path[-1]]}} for path in (a, b)]
        return told | {"models": models, "parameters": {"normalize": False}}
    parameters = {"weight": 1.0} | ({"density": DENSITY} if plan.method == "ties" else {})
    models = [{"model": path, "parameters": parameters} for path in (a, b)]
    normalize = plan.method == "ties"
    return told | {"base_model": str(plan.base), "models": models, "parameters": {"normalize": normalize}}


def prepare(recipe: dict[str, Any], output: Path) -> Callable[[], None]:
    """What merges into `output` when called; importing is done then."""
    import logging

    logging.disable(logging.WARNING)
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    return partial(run_merge, MergeConfiguration.model_validate(recipe), str(output), MergeOptions(**OPTIONS))


def write_command(recipe: dict[str, Any], file: Path, output: Path) -> list[str]:
    """Write `file` and return the command that does the same with it."""
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    switches = [f"--{'' if on else 'no-'}{name.replace('_', '-')}" for name, on in OPTIONS.items()]
    return [str(Path(sys.executable).with_name("mergekit-yaml")), str(file), str(output), *switches]
