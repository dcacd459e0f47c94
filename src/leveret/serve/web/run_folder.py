"""What a run left behind: the folders of its stages and the files in them that can be shown. Nothing is ever written.

    runs/                       the folder that is shown
      demo/                     a run: a recipe's, with a folder for each stage,
        finetune/metrics.jsonl xray.html outcome.json
        certify/certificate.json
      base/metrics.jsonl        or one command's

A name that comes from a browser is looked up among the names found here, and is never made into a path; a link that
leads out of the folder is not followed. Files larger than `MOST_BYTES` are not read. What goes away while it is looked
at (a run moves its old outputs), or is not ours to read, is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.errors import ConfigError
from leveret.yaml_files import parse_yaml

SHOWN = (
    "metrics.jsonl", "outcome.json", "xray.html", "evaluation.json", "certificate.json", "quantization.json",
    "plan.json",
)  # fmt: skip
"""Files that have something to show."""
NOT_STAGES = frozenset({"checkpoints", "model", "shards", "stages"})
MOST_BYTES = 64 * 2**20
MOST_FOLDERS = 500


@dataclass(frozen=True, kw_only=True)
class StageFolder:
    """One stage."""

    name: str
    """Relative to the run; "" for the run's own folder."""
    files: dict[str, Path]
    """Those of `SHOWN` that are there."""
    begun: float
    """When its oldest file was last written."""


def runs_below(root: Path) -> dict[str, Path]:
    """The runs in a folder by name, newest first; the folder itself when it is one."""
    if not root.is_dir():
        return {}
    if _is_run(root):
        return {root.resolve().name: root}
    runs = {place.name: place for place in _folders(root) if _is_run(place) or stages_of(place)}
    return dict(sorted(runs.items(), key=lambda item: -last_change(item[1])))


def stages_of(run: Path) -> list[StageFolder]:
    """The stages with something to show, in the order of the recipe, else in that of their files."""
    places = [run, *_folders(run)]
    places += [inner for place in places[1:] for inner in _folders(place)]  # a group of stages is a folder more
    stages = []
    for place in places[:MOST_FOLDERS]:
        files = {name: place / name for name in SHOWN if _is_own_file(place / name, run)}
        if files:
            name = "" if place == run else place.relative_to(run).as_posix()
            begun = min(map(last_change, files.values()))
            stages.append(StageFolder(name=name, files=files, begun=begun))
    order = {name: place for place, name in enumerate(_names_in_recipe(run))}
    last = len(order)
    return sorted(stages, key=lambda stage: (order.get(stage.name.split("/")[0], last), stage.begun, stage.name))


def last_change(place: Path) -> float:
    """When a file or folder was last written, in seconds since 1970; 0 when it is gone."""
    try:
        return place.stat().st_mtime
    except OSError:
        return 0.0


def read_text(file: Path) -> str:
    """A file's text. OSError or ValueError when it cannot be shown."""
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{file.name} has {size:,} bytes, more than {MOST_BYTES:,}")
    return file.read_text(encoding="utf-8")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object. OSError or ValueError when it cannot be shown."""
    content = json.loads(read_text(file))
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return content


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file that have a step; a last line that is being written is left out."""
    lines = []
    for text in read_text(file).splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int | float):
            lines.append(line)
    return lines


def _names_in_recipe(run: Path) -> list[str]:
    """The stages' names as the recipe has them; [] where there is no recipe that says so."""
    file = run / "recipe.yaml"
    try:
        recipe: Any = parse_yaml(read_text(file), source=str(file)) if _is_own_file(file, run) else None
        return [str(stage["name"]) for stage in recipe["stages"]]
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return []


def _is_run(place: Path) -> bool:
    names = (*SHOWN, "recipe.yaml")
    return any(_is_own_file(place / name, place) for name in names)


def _folders(place: Path) -> Iterator[Path]:
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return
    for entry in entries:
        wanted = not entry.name.startswith(".") and entry.name not in NOT_STAGES and os.path.isdir(entry)
        if wanted and entry.resolve().is_relative_to(place.resolve()):
            yield entry


def _is_own_file(file: Path, run: Path) -> bool:
    return os.path.isfile(file) and file.resolve().is_relative_to(run.resolve())
