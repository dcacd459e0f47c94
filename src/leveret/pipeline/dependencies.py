"""What a stage's result depends on: its config, its input files, leveret's code, and the stages it builds on.

    fingerprint(stage) = SHA-256 of (config, content of inputs, code, fingerprints of the stages it refers to)

Equal fingerprints mean equal results, for every stage is a pure function of these. *Code* is every file of this
package except the command line, the pipeline and the other verbs, none of which a verb may import.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leveret.commands import COMMANDS, Command
from leveret.config import Config, fingerprint
from leveret.hub import ADAPTER_CONFIG
from leveret.paths import atomic_write, files_below, sha256_file
from leveret.recipe import Stage

_SIGNS = ("config.json", ADAPTER_CONFIG, "manifest.json")
"""A folder with one of these files is a model, an adapter or a checkpoint."""

Parts = dict[str, Any]
"""The four parts of a fingerprint, kept apart so that a change can be explained."""


def parts_of(stage: Stage, earlier: Mapping[str, tuple[Stage, str]], contents: ContentHashes) -> Parts:
    """The parts of a stage's fingerprint; `earlier` has the stages before it with their fingerprints."""
    builds_on = set(stage.references)
    inputs: dict[str, str] = {}
    for value in _values(stage.config):
        path = _path(value)
        owner = next((name for name, (other, _) in earlier.items() if _is_inside(path, other.output)), None)
        if owner is not None:
            builds_on.add(owner)
        elif not _is_inside(path, stage.output) and (isinstance(value, Path) or _names_input(path)):
            inputs[path.as_posix()] = contents.of(path, without=stage.output)
    return {
        "config": stage.config.model_dump(mode="json"),
        "inputs": inputs,
        "code": code_digest(stage.command),
        "stages": {name: earlier[name][1] for name in sorted(builds_on)},
    }


def files_written(output: Path | None) -> list[str]:
    """What a stage has left in its output; hidden files do not count."""
    return [] if output is None else [file.relative_to(output).as_posix() for file in _visible_files(output)]


def combine(parts: Parts) -> str:
    """One fingerprint for the parts."""
    return fingerprint(parts)


def explain_change(before: Parts, now: Parts) -> str:
    """Which parts differ, in words: `config (training.max_steps 10 -> 20), code`."""
    reasons = []
    for part in ("config", "inputs", "stages", "code"):
        if before.get(part) == now[part]:
            continue
        names = sorted(_differing(before.get(part), now[part])) if part != "code" else []
        reasons.append(f"{part} ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})" if names else part)
    return ", ".join(reasons)


class ContentHashes:
    """Hashes of input files and folders, remembered in a file so that an unchanged input is not read again."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        try:
            known = json.loads(memory.read_text())
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, dict[str, str]] = known if isinstance(known, dict) else {}

    def of(self, path: Path, *, without: Path | None = None) -> str:
        """The hash of what is in `path` now; hidden files and `__pycache__` in a folder do not count, nor does what a
        stage writes in it: `without`."""
        files = [path] if path.is_file() else [file for file in _visible_files(path) if not _is_inside(file, without)]
        if not files:
            return "missing"
        key, look = str(path.absolute()), hashlib.sha256()
        for file in files:
            status = file.stat()
            look.update(f"{file} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n".encode())
        known = self._known.get(key)
        if known is None or known["look"] != look.hexdigest():
            content = hashlib.sha256()
            for file in files:
                name = file.name if file == path else file.relative_to(path).as_posix()
                content.update(f"{sha256_file(file)} {name}\n".encode())
            self._known[key] = known = {"look": look.hexdigest(), "content": content.hexdigest()}
            atomic_write(self._memory, json.dumps(self._known, indent=1))
        return known["content"]


@functools.cache
def code_digest(command: Command) -> str:
    """A hash of the package's files that `command` can reach."""
    root = Path(__file__).parents[1]
    others = {other.folder for other in COMMANDS.values()} - {command.folder}
    digest = hashlib.sha256()
    for file in _visible_files(root):
        name = file.relative_to(root)
        if name.parts[0] not in others and file.suffix not in (".pyc", ".so"):
            digest.update(f"{sha256_file(file)} {name.as_posix()}\n".encode())
    return digest.hexdigest()


def _values(config: Config) -> Iterator[Path | str]:
    """Every path in a config except its output, every text that could be one, and the models that adapters name."""
    for _, item in leaves(config, without=("output",)):
        for value in _readings(item):
            yield value
            if (model := _model_of_adapter(_path(value))) is not None:
                yield model


def leaves(config: Config, *, without: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Every single value in a config with its key (`data.0.path`), but those under the keys `without`."""
    for name, value in dict(config).items():
        if name not in without:
            yield from _leaves(name, value)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Config):
        value = dict(value)
    if isinstance(value, set | frozenset | list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{key}.{name}", inner)


def _readings(value: Any) -> Iterator[Path | str]:
    """What a value may name: a path itself, a text in every way that a path can stand in it."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, str) and 0 < len(value) < 1024 and value.isprintable():
        yield from _paths_in(value)


def _paths_in(text: str) -> Iterator[str]:
    """What may be a path in a text: all of it, what follows `reader:`, and both sides of `MODEL+ADAPTER`."""
    yield text
    prefix = re.match(r"[a-z][a-z.]*:", text)
    inner = text[prefix.end() :] if prefix else text
    if prefix:
        yield inner
    if "+" in inner:
        model, _, adapter = inner.rpartition("+")
        yield from (part for part in (model, adapter) if part)


def _path(value: Path | str) -> Path:
    """The place that a value names, `~` read as every command reads it."""
    return Path(os.path.expanduser(value))


def _names_input(path: Path) -> bool:
    """Whether a text names a file, a model folder or a folder of checkpoints (and not, by chance, any folder)."""
    try:
        return (
            path.is_file() or any((path / name).is_file() for name in _SIGNS) or any(path.glob("step-*/manifest.json"))
        )
    except (OSError, ValueError):  # a text too long for a path
        return False


def _model_of_adapter(folder: Path) -> str | None:
    """The model that an adapter's folder names: what the adapter gives changes with it."""
    try:
        said = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8-sig"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if isinstance(said, str) and said else None


def _is_inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.absolute().is_relative_to(folder.absolute())


def _visible_files(folder: Path) -> list[Path]:
    return [
        file
        for file in files_below(folder)
        if not any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(folder).parts)
    ]


def _differing(before: Any, now: Any, prefix: str = "") -> Iterator[str]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        yield prefix if isinstance(now, dict | list) or len(f"{before}{now}") > 60 else f"{prefix} {before} -> {now}"
        return
    for key in {*before, *now}:
        if before.get(key) != now.get(key):
            yield from _differing(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
