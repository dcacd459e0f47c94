"""Any part of any tensor of a model directory, read when it is asked for: nothing is mapped, nothing stays in memory.

    with WeightReader(folder) as reader:
        reader.tensors["lm_head.weight"]            # Stored(dtype, shape, ...), from the files' headers
        reader.read("lm_head.weight", 0, 4096)      # its first 4096 values, as a flat tensor

A safetensors file is a length, a JSON header with the byte range of every tensor, and the bytes; so a part is one
`pread`. A mapping would do as well, but its pages count as this process's memory for as long as they are warm, and
"what does it need?" would have no answer. Reading is safe from several threads. A .bin file says in its pickle where
its values lie (bin_file.py).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from leveret.errors import CorruptedFile
from leveret.weights.bin_file import BIN_SUFFIXES, BinTensor, open_bin
from leveret.weights.file_values import DTYPES, read_bin_tensor, read_values
from leveret.weights.safetensors import WeightFiles, find_weight_files


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor, as a file holds it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: str
    """The file's name in the directory."""
    offset: int
    """Where its bytes begin in the file."""
    window: BinTensor | None = None
    """How its values lie in a .bin file, if not one after another."""

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


class WeightReader:
    """The tensors of one directory. A context manager: the files are open inside it.

    files: those to read; None: those that `find_weight_files` finds.
    """

    def __init__(self, directory: Path, files: WeightFiles | None = None) -> None:
        self.directory = directory
        self.files = find_weight_files(directory) if files is None else files
        self.tensors: dict[str, Stored] = {}
        self._handles: dict[str, int] = {}
        for file in sorted(set(self.files.file_of.values())):
            self.tensors |= (_described if file.endswith(BIN_SUFFIXES) else _header)(directory / file)

    def __enter__(self) -> WeightReader:
        for file in sorted({stored.file for stored in self.tensors.values()}):
            self._handles[file] = os.open(self.directory / file, os.O_RDONLY)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Values [start, stop) of a tensor in row-major order, flat, in a tensor of their own."""
        stored = self.tensors[name]
        stop = stored.numel if stop is None else stop
        assert 0 <= start <= stop <= stored.numel, (name, start, stop)
        handle, path = self._handles[stored.file], self.directory / stored.file
        if stored.window is not None:
            return read_bin_tensor(handle, path, stored.window).reshape(-1)[start:stop].clone()
        return read_values(handle, path, stored.dtype, stored.offset + start * stored.dtype.itemsize, stop - start)


def _described(path: Path) -> dict[str, Stored]:
    """The tensors of one .bin file."""
    return {
        name: Stored(
            dtype=DTYPES[tensor.dtype],
            shape=tensor.shape,
            file=path.name,
            offset=tensor.offset,
            window=None if tensor.contiguous else tensor,
        )
        for name, tensor in open_bin(path).tensors.items()
    }


def _header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, which `find_weight_files` has already found whole."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if strange := sorted({entry["dtype"] for entry in header.values()} - set(DTYPES)):
        raise CorruptedFile(f"{path} holds tensors of {', '.join(strange)}, which are not read here",
                            hint=f"known are {', '.join(DTYPES)}")  # fmt: skip
    return {
        name: Stored(
            dtype=DTYPES[entry["dtype"]],
            shape=tuple(entry["shape"]),
            file=path.name,
            offset=8 + length + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }
