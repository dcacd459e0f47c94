"""The tensor files of a model directory: which there are, which tensors they hold, and reading them one by one.

    model.safetensors                                   one file
    model.safetensors.index.json + model-0000i-of-n...  shards; the index says which tensor lies where
    pytorch_model.bin (.index.json)                     the older form; read by bin_file.py, so no code in it can run

Reading streams: one tensor is in memory at a time. A file that is cut short is found by its header, before any tensor
is used, and the error names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from leveret.errors import CorruptedFile, MissingWeights, UnexpectedWeights
from leveret.weights.bin_file import BIN_SUFFIXES, open_bin, refuse_pointer
from leveret.weights.file_values import let_go_of_pages, places_of_mapping, read_bin_tensor

CANDIDATES = ("model.safetensors", "pytorch_model.bin")
"""Single files looked for, in this order; each may also be sharded, with an index beside it."""

EXTRA_STATE = "_extra_state"
"""Ending of the scales that TransformerEngine's FP8 modules keep beside their weights; no model needs them to run."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The tensors of a directory: name -> file."""

    directory: Path
    """Where the files lie."""
    file_of: dict[str, str]
    """File name of every tensor."""

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """(tensor name, file name, tensor on the CPU) of all tensors, file by file."""
        for file in sorted(set(self.file_of.values())):
            for name, tensor in _read(self.directory / file):
                yield name, file, tensor


def one_file(path: Path) -> WeightFiles:
    """A single tensor file, whatever its name is; CorruptedFile when it cannot be read."""
    return WeightFiles(directory=path.parent, file_of=dict.fromkeys(_names_in(path), path.name))


def find_weight_files(directory: Path) -> WeightFiles:
    """The tensor files of a model directory; MissingWeights, UnexpectedWeights or CorruptedFile name what is wrong."""
    for single in CANDIDATES:
        if (directory / single).is_file():
            return WeightFiles(directory=directory, file_of=dict.fromkeys(_names_in(directory / single), single))
        index = directory / f"{single}.index.json"
        if index.is_file():
            return WeightFiles(directory=directory, file_of=_checked_index(index))
    raise MissingWeights(
        f"{directory} holds no weights: neither {' nor '.join(CANDIDATES)}, nor an index of shards",
        hint="is the download complete, and is this the model's own folder?",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; CorruptedFile names the file and the line that cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptedFile(f"{path} is no JSON: {error}", hint="fetch or write the file again") from error
    if not isinstance(content, dict):
        raise CorruptedFile(f"{path} holds a {type(content).__name__}, not an object", hint="fetch the file again")
    return content


def name_some(names: set[str] | list[str], limit: int = 5) -> str:
    """The first few names in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more


def _checked_index(index: Path) -> dict[str, str]:
    """The index's map, after comparing it with the shards themselves."""
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(file, str) for file in file_of.values()):
        raise CorruptedFile(f"{index} has no weight_map from tensors to files", hint="fetch or write the file again")
    shards = sorted(set(file_of.values()))
    if absent := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise MissingWeights(
            f"{index} names {len(absent)} shards that are not there: {name_some(absent)}",
            hint="fetch them; the download may have been interrupted",
        )
    for shard in shards:
        promised = {name for name, file in file_of.items() if file == shard}
        held = set(_names_in(index.parent / shard))
        if promised - held:
            raise MissingWeights(
                f"{index.parent / shard} lacks {name_some(promised - held)}, which {index.name} places there"
            )
        if held - promised:
            raise UnexpectedWeights(
                f"{index.parent / shard} holds {name_some(held - promised)}, unknown to {index.name}"
            )
    return file_of


def _names_in(path: Path) -> list[str]:
    if path.suffix in BIN_SUFFIXES:
        file = open_bin(path)
        if strange := [name for name in file.others if not name.endswith(EXTRA_STATE)]:
            raise UnexpectedWeights(f"{path} holds {name_some(strange)}, which are no tensors",
                                    hint="save the model's state dict alone")  # fmt: skip
        return list(file.tensors)
    with open(path, "rb") as opened:
        refuse_pointer(path, opened.read(64))
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise _corrupted(path, error) from error


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    if path.suffix in BIN_SUFFIXES:
        handle = os.open(path, os.O_RDONLY)
        try:
            for name, described in open_bin(path).tensors.items():
                yield name, read_bin_tensor(handle, path, described)
        finally:
            os.close(handle)
        return
    with safe_open(path, framework="pt") as file:
        mapped = places_of_mapping(path)
        for name in file.keys():  # noqa: SIM118  # no mapping: only keys() exists
            try:
                tensor = file.get_tensor(name)
            except SafetensorError as error:
                raise _corrupted(path, error) from error
            yield name, tensor
            let_go_of_pages(tensor, mapped)


def _corrupted(path: Path, error: Exception) -> CorruptedFile:
    size = path.stat().st_size if path.exists() else 0
    return CorruptedFile(
        f"{path} ({size:,} bytes) cannot be read: {error}",
        hint="it is cut short or damaged: fetch or write it again",
    )
