"""A model's tensor files, written piece by piece in any order: what is in memory is the piece in hand.

    with WeightWriter(folder, {"lm_head.weight": (torch.bfloat16, (32000, 2048)), ...}) as writer:
        writer.write("lm_head.weight", 0, first_values)      # flat, from this place on

Names, dtypes and shapes are known before any value is, so the header of each file is written first and every value has
its place. Several threads may write. On leaving, every value must have come, and the index is written if there are
several files. Write into the draft of an `atomic_directory`: half a model then never has a name.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from leveret.allocator import PAGE
from leveret.paths import atomic_write
from leveret.weights.direct import DirectFile, PlainFile
from leveret.weights.file_values import DTYPES
from leveret.weights.save import INDEX, SHARD_BYTES

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name -> dtype and shape of every tensor, in the order of the files."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class WeightWriter:
    """The files of one model. A context manager; an exception inside leaves the files as they are, without an index.

    `direct` writes past the system's cache: for models that nothing reads again at once.
    """

    def __init__(
        self, directory: Path, layout: Layout, *, shard_bytes: int = SHARD_BYTES, direct: bool = False
    ) -> None:
        self.directory = directory
        self.layout = layout
        self._alignment = PAGE if direct else 8
        self._place: dict[str, tuple[str, int]] = {}
        self._missing = {name: math.prod(shape) for name, (_, shape) in layout.items()}
        self._lock = threading.Lock()
        self._files: dict[str, PlainFile] = {}
        shards = _shards(layout, shard_bytes)
        for number, names in enumerate(shards, start=1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._files[file] = DirectFile(directory / file) if direct else PlainFile(directory / file)
            self._begin(file, names)

    @property
    def total_bytes(self) -> int:
        """Size of all tensors."""
        return sum(_bytes(*entry) for entry in self.layout.values())

    def __enter__(self) -> WeightWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if error is not None:
            return
        unfinished = sorted(name for name, values in self._missing.items() if values)
        assert not unfinished, f"values of {unfinished[:3]} were not written, or twice"
        if len(self._files) > 1:
            file_of = {name: file for name, (file, _) in self._place.items()}
            content = {"metadata": {"total_size": self.total_bytes}, "weight_map": file_of}
            atomic_write(self.directory / INDEX, json.dumps(content, indent=2) + "\n")

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Put flat `values` into a tensor, the first of them at place `start` in row-major order."""
        dtype, _ = self.layout[name]
        assert values.dtype == dtype and values.ndim == 1, (name, values.dtype, values.shape)
        file, offset = self._place[name]
        content = values.contiguous().view(torch.uint8).numpy().data
        self._files[file].write(content, offset + start * dtype.itemsize)
        with self._lock:
            self._missing[name] -= values.numel()

    def _begin(self, file: str, names: list[str]) -> None:
        """Write the header of one file, and set every tensor's place in it."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # Wide values first, so that each lies at a multiple of its size.
        for name in sorted(names, key=lambda name: -self.layout[name][0].itemsize):
            dtype, shape = self.layout[name]
            begin, end = end, end + _bytes(dtype, shape)
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % self._alignment)
        self._files[file].allocate(8 + len(text) + end)
        self._files[file].write(len(text).to_bytes(8, "little") + text, 0)
        for name in names:
            self._place[name] = (file, 8 + len(text) + header[name]["data_offsets"][0])


def _shards(layout: Layout, shard_bytes: int) -> list[list[str]]:
    """Names in order, cut into files; a tensor larger than a shard has a file to itself."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in layout.items():
        if shards[-1] and size + _bytes(*entry) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(*entry)
    return shards


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize
