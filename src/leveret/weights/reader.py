"""Any part of any tensor of a model directory, read when it is asked for: nothing is mapped, nothing stays in memory.

    with WeightReader(folder) as reader:
        reader.tensors["lm_head.weight"]            # Stored(dtype, shape, ...), from the files' headers
        reader.read("lm_head.weight", 0, 4096)      # its first 4096 values, as a flat tensor

A safetensors file is a length, a JSON header with the byte range of every tensor, and the bytes; so a part is one
`pread`. A mapping would do as well, but its pages count as this process's memory for as long as they are warm, and
"what does it need?" would have no answer. Reading is safe from several threads. .bin files are mapped by PyTorch.
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
from leveret.weights.safetensors import find_weight_files, load_bin

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The format's names of dtypes."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor, as a file holds it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: str
    """The file's name in the directory."""
    offset: int
    """Where its bytes begin in the file; 0 for a .bin file."""

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


class WeightReader:
    """The tensors of one directory. A context manager: the files are open inside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tensors: dict[str, Stored] = {}
        self._handles: dict[str, int] = {}
        self._mapped: dict[str, Tensor] = {}
        for file in sorted(set(find_weight_files(directory).file_of.values())):
            if file.endswith(".bin"):
                whole = load_bin(directory / file)
                self._mapped |= whole
                self.tensors |= {name: _of_tensor(tensor, file) for name, tensor in whole.items()}
            else:
                self.tensors |= _header(directory / file)

    def __enter__(self) -> WeightReader:
        for file in sorted({stored.file for stored in self.tensors.values()}):
            if not file.endswith(".bin"):
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
        if name in self._mapped:
            return self._mapped[name].reshape(-1)[start:stop].clone()
        values = torch.empty(stop - start, dtype=stored.dtype)
        if stop > start:
            self._fill(values.view(torch.uint8).numpy().data, stored, start * stored.dtype.itemsize)
        return values

    def _fill(self, buffer: memoryview, stored: Stored, begin: int) -> None:
        done = 0
        while done < len(buffer):
            got = os.preadv(self._handles[stored.file], [buffer[done:]], stored.offset + begin + done)
            if got == 0:
                raise CorruptedFile(
                    f"{self.directory / stored.file} ends inside a tensor", hint="fetch or write the file again"
                )
            done += got


def _of_tensor(tensor: Tensor, file: str) -> Stored:
    return Stored(dtype=tensor.dtype, shape=tuple(tensor.shape), file=file, offset=0)


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
