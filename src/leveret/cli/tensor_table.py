"""The tensors in safetensors and PyTorch files, read from the headers alone.

A safetensors file begins with eight bytes, the length n of the header (little-endian), then n bytes of JSON:
`{"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {...}}`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.errors import CorruptedFile
from leveret.weights.bin_file import BIN_SUFFIXES, ITEM_BYTES, open_bin, refuse_pointer

_LARGEST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """What the header says about one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def tensors_in(file: Path) -> tuple[list[TensorEntry], Mapping[str, str]]:
    """The tensors of a file and its metadata, whichever of the two forms it has.

    CorruptedFile when it is damaged, UnsafeFile when it asks for code to be run.
    """
    if file.suffix not in BIN_SUFFIXES:
        return read_header(file)
    opened = open_bin(file)
    entries = [
        TensorEntry(name=name, dtype=tensor.dtype, shape=tensor.shape, num_bytes=tensor.num_bytes)
        for name, tensor in opened.tensors.items()
    ]
    return entries, {"no tensors": ", ".join(opened.others)} if opened.others else {}


def tensors_of_model(folder: Path) -> list[TensorEntry]:
    """Those of a model directory: its safetensors files, or, where there are none, PyTorch's."""
    files = sorted(folder.glob("*.safetensors")) or sorted(
        file for file in folder.glob("*.bin") if file.name.startswith(("pytorch_model", "adapter_model"))
    )
    return [entry for file in files for entry in tensors_in(file)[0]]


def read_header(file: Path) -> tuple[list[TensorEntry], Mapping[str, str]]:
    """The tensors of a file and its metadata. CorruptedFile when the header is damaged or the file cut short."""
    size = file.stat().st_size
    with open(file, "rb") as handle:
        refuse_pointer(file, handle.read(64))
        handle.seek(0)
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER_BYTES):
            raise CorruptedFile(f"{file} is no safetensors file: it says its header has {length:,} bytes")
        try:
            header = json.loads(handle.read(length))
            metadata = header.pop("__metadata__", {})
            entries = [_entry(name, value) for name, value in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptedFile(f"{file} is no safetensors file: its header cannot be read ({error})") from None
    expected = 8 + length + sum(entry.num_bytes for entry in entries)
    if wrong := next((entry for entry in entries if not _fits(entry)), None):
        what = f"{wrong.dtype} {list(wrong.shape)}"
        raise CorruptedFile(f"{file} is damaged: its header gives {wrong.num_bytes:,} bytes to {wrong.name}, {what}")
    if size < expected:
        raise CorruptedFile(f"{file} is cut short: {size:,} bytes, its header promises {expected:,}")
    if size > expected:
        raise CorruptedFile(f"{file} is damaged: {size:,} bytes, its header accounts for {expected:,}")
    return entries, metadata


def table_rows(entries: Iterable[TensorEntry], *, every_tensor: bool) -> list[tuple[str, str, str, int, int]]:
    """Rows of (name, dtype, shape, how many, bytes); tensors alike but for numbers in their names share a row."""
    grouped: dict[tuple[str, str, tuple[int, ...]], list[TensorEntry]] = {}
    for entry in entries:
        pattern = entry.name if every_tensor else re.sub(r"(?<=\.)\d+(?=\.)", "#", entry.name)
        grouped.setdefault((pattern, entry.dtype, entry.shape), []).append(entry)
    return [
        (
            pattern if len(group) > 1 else group[0].name,
            dtype,
            " x ".join(map(str, shape)) or "scalar",
            len(group),
            sum(entry.num_bytes for entry in group),
        )
        for (pattern, dtype, shape), group in grouped.items()
    ]


def by_dtype(entries: Iterable[TensorEntry]) -> str:
    """What each dtype takes: `BF16 2.2 GB, F32 0.1 MB`."""
    taken: dict[str, int] = {}
    for entry in entries:
        taken[entry.dtype] = taken.get(entry.dtype, 0) + entry.num_bytes
    return ", ".join(f"{dtype} {in_bytes(number)}" for dtype, number in sorted(taken.items()))


def in_bytes(number: int) -> str:
    """A size as a person says it: `4.1 MB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number} bytes"


def _fits(entry: TensorEntry) -> bool:
    """Whether a tensor has the bytes that its shape needs; of a dtype that is not known, whether it may have."""
    if any(size < 0 for size in entry.shape) or entry.num_bytes < 0:
        return False
    needed = ITEM_BYTES.get(entry.dtype)
    return needed is None or entry.num_bytes == math.prod(entry.shape) * needed


def _entry(name: str, value: Mapping[str, Any]) -> TensorEntry:
    begin, end = (int(offset) for offset in value["data_offsets"])
    shape = tuple(int(size) for size in value["shape"])
    return TensorEntry(name=name, dtype=str(value["dtype"]), shape=shape, num_bytes=end - begin)
