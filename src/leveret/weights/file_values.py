"""Values of a file as tensors: `pread` into a tensor of their own, nothing mapped; and the formats' names of dtypes.

Where a library maps a file, what was read of it counts as this process's memory until it is let go.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from leveret.allocator import PAGE
from leveret.errors import CorruptedFile
from leveret.weights.bin_file import BinTensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The safetensors format's names of dtypes."""


def read_values(handle: int, path: Path, dtype: torch.dtype, offset: int, count: int) -> Tensor:
    """`count` values from byte `offset` of an open file, flat. CorruptedFile names `path` if it ends before."""
    values = torch.empty(count, dtype=dtype)
    if count == 0:
        return values
    buffer = values.view(torch.uint8).numpy().data
    done = 0
    while done < len(buffer):
        got = os.preadv(handle, [buffer[done:]], offset + done)
        if got == 0:
            raise CorruptedFile(f"{path} ends inside a tensor", hint="fetch or write the file again")
        done += got
    return values


def read_bin_tensor(handle: int, path: Path, tensor: BinTensor) -> Tensor:
    """A tensor of an open .bin file, its values in row-major order whatever order the file has."""
    values = read_values(handle, path, DTYPES[tensor.dtype], tensor.offset, tensor.span)
    if tensor.contiguous:
        return values.reshape(tensor.shape)
    return values.as_strided(tensor.shape, tensor.stride).contiguous()


def places_of_mapping(path: Path) -> list[range]:
    """The addresses at which this process has a file mapped; none where the system does not tell (Linux does)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    inode, found = str(path.stat().st_ino), []
    for line in maps.read_text("utf-8").splitlines():
        addresses, _, _, _, number, *_ = line.split()
        if number == inode:
            first, last = (int(each, 16) for each in addresses.split("-"))
            found.append(range(first, last))
    return found


def let_go_of_pages(tensor: Tensor, mapped: Iterable[range]) -> None:
    """Say that the pages under a view of a mapped file are not needed now; whoever reads them again maps them again.

    They stay in the system's cache. Only for what nobody has written to: a private mapping would forget it.
    mapped: where the file is (`places_of_mapping`); what lies elsewhere would be lost, and is left alone.
    """
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    if not any(begin in place and end - 1 in place for place in mapped):
        return
    first = -(-begin // PAGE) * PAGE
    length = (end - first) // PAGE * PAGE
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
