"""A .bin (or .pt, .pth) file of PyTorch: which tensors lie where in it, found without running anything in it.

Such a file is a pickle, a small program, and the values beside it. Loaded naively it may do anything on this machine.
Here the program is followed by a reader that knows only how a tensor is described: whatever else it asks for is an
error that names it. So this needs no PyTorch, and no value is read. Both layouts are known:

    zip (since 1.6)    archive/data.pkl, archive/data/KEY with the values of one storage, uncompressed
    stream (before)    three small pickles, the description, the list of storages, then length and values of each

A tensor is a window on a storage: where it begins, its shape, and how far apart neighbours are (`stride`).
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from leveret.errors import CorruptedFile, UnsafeFile

BIN_SUFFIXES = (".bin", ".pt", ".pth")
"""Endings of such files."""

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
"""Bytes of a value, by the names that safetensors has for dtypes."""

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "UntypedStorage": "U8",
}  # fmt: skip
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
_ZIP, _LEGACY = b"PK", 0x1950A86A20F9469CFC6C
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class BinTensor:
    """One tensor: a window on bytes of the file."""

    dtype: str
    """As safetensors spells it: F32, BF16 ..."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """In values."""
    offset: int
    """Where its first value lies in the file, in bytes."""

    @property
    def contiguous(self) -> bool:
        """Whether its values lie one after another in row-major order."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True

    @property
    def span(self) -> int:
        """Values from its first to its last in the file."""
        return _span(self.shape, self.stride)

    @property
    def num_bytes(self) -> int:
        """Size of its values, each counted once for every place in the tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class BinFile:
    """What one file holds."""

    path: Path
    tensors: Mapping[str, BinTensor]
    others: tuple[str, ...]
    """Names of entries that are no tensors, such as the `_extra_state` of TransformerEngine's modules."""


def open_bin(path: Path) -> BinFile:
    """Read a file's description. UnsafeFile: it asks for more than tensors. CorruptedFile: it is none, or damaged."""
    with open(path, "rb") as file:
        start = file.read(len(_POINTER))
        file.seek(0)
        refuse_pointer(path, start)
        try:
            content, places = _read_zip(path, file) if start.startswith(_ZIP) else _read_legacy(path, file)
            named = _named(path, content)
            tensors = {name: _placed(path, name, value, places) for name, value in named.items()
                       if isinstance(value, _Window)}  # fmt: skip
        except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, KeyError, ValueError, TypeError,
                IndexError, AttributeError, struct.error) as error:  # fmt: skip
            size = path.stat().st_size
            raise CorruptedFile(f"{path} ({size:,} bytes) cannot be read: {type(error).__name__}: {error}",
                                hint="it is cut short or damaged: fetch or write it again") from error  # fmt: skip
    return BinFile(path=path, tensors=tensors, others=tuple(name for name in named if name not in tensors))


def refuse_pointer(path: Path, start: bytes) -> None:
    """CorruptedFile if a file begins as the pointer that git leaves where git-lfs is not installed."""
    if start.startswith(_POINTER):
        raise CorruptedFile(f"{path} is only git-lfs's pointer to the file", hint="run `git lfs pull` in its folder")


@dataclass(frozen=True, kw_only=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class _Window:
    storage: _Storage
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Opaque:
    """What stands for an object that is no tensor: it takes anything and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild(storage: _Storage, start: int, shape: Any, stride: Any, *rest: Any) -> _Window:
    return _Window(storage=storage, start=start, shape=tuple(shape), stride=tuple(stride))


def _rebuild_typed(storage: _Storage, start: int, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: str,
                   *rest: Any) -> _Window:  # fmt: skip
    return _rebuild(replace(storage, dtype=dtype), start, shape, stride)


def _rebuild_parameter(data: _Window, *rest: Any) -> _Window:
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_typed,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
    ("_io", "BytesIO"): _Opaque,
    ("_codecs", "encode"): _Opaque,
    **{("torch", name): dtype for name, dtype in (_STORAGES | _DTYPES).items()},
    **{("torch.storage", name): dtype for name, dtype in _STORAGES.items()},
}
"""Everything that a description may ask for, and what it gets."""


class _Description(pickle.Unpickler):
    """Follows a pickle, giving it nothing but what stands in `_KNOWN`."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise UnsafeFile(
                f"{self._path} asks for {module}.{name}, which is no part of a tensor; nothing in it was run",
                hint="a file of weights needs no code: take the model's .safetensors, or save its state dict where you "
                "trust the file",
            ) from None

    def persistent_load(self, identifier: Any) -> _Storage:
        kind, dtype, key, _, _, *views = identifier
        if kind != "storage" or any(view is not None for view in views):
            raise ValueError(f"unknown reference {identifier!r}")
        return _Storage(key=str(key), dtype=dtype)


def _read_zip(path: Path, file: IO[bytes]) -> tuple[Any, dict[str, tuple[int, int]]]:
    """(what is described, storage -> first byte and end)."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        description = next((name for name in entries if name.endswith("/data.pkl")), None)
        if description is None:
            raise ValueError("it is a zip file without data.pkl")
        root = description.removesuffix("data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its values are in big-endian order")
        content = _Description(archive.open(description), path).load()
    places = {}
    for name, entry in entries.items():
        if name.startswith(f"{root}data/"):
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its values are compressed")
            file.seek(entry.header_offset + 26)
            lengths = file.read(4)
            begin = entry.header_offset + 30 + sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
            places[name.removeprefix(f"{root}data/")] = (begin, begin + entry.file_size)
    return content, places


def _read_legacy(path: Path, file: IO[bytes]) -> tuple[Any, dict[str, tuple[int, int]]]:
    if (magic := _Description(file, path).load()) != _LEGACY:
        raise ValueError(f"it begins with {magic!r:.40}, which no file of weights does")
    _Description(file, path).load()  # the version of the layout
    if not _Description(file, path).load().get("little_endian", True):
        raise ValueError("its values are in big-endian order")
    reader = _Seen(file, path)
    content = reader.load()
    places = {}
    end = path.stat().st_size
    for key in _Description(file, path).load():
        values = int.from_bytes(file.read(8), "little")
        begin = file.tell()
        places[str(key)] = (begin, begin + values * ITEM_BYTES[reader.dtypes[str(key)]])
        if places[str(key)][1] > end:
            raise EOFError(f"storage {key} should end at byte {places[str(key)][1]:,}")
        file.seek(places[str(key)][1])
    return content, places


class _Seen(_Description):
    """Remembers the dtypes of storages, by which the older layout counts."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, path)
        self.dtypes: dict[str, str] = {}

    def persistent_load(self, identifier: Any) -> _Storage:
        storage = super().persistent_load(identifier)
        self.dtypes[storage.key] = storage.dtype
        return storage


def _named(path: Path, content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise CorruptedFile(f"{path} holds no dictionary of tensors, but {type(content).__name__.strip('_')}",
                            hint="save the model's state dict, not the model")  # fmt: skip
    inner = [name for name, value in content.items() if isinstance(value, Mapping)]
    if inner and not any(isinstance(value, _Window) for value in content.values()):
        raise CorruptedFile(
            f"{path} holds dictionaries ({', '.join(inner[:4])}) and no tensors: it is a checkpoint of some trainer",
            hint="save the model's state dict alone",
        )
    return content


def _placed(path: Path, name: str, window: _Window, places: Mapping[str, tuple[int, int]]) -> BinTensor:
    begin, end = places[window.storage.key]
    item = ITEM_BYTES[window.storage.dtype]
    tensor = BinTensor(
        dtype=window.storage.dtype, shape=window.shape, stride=window.stride, offset=begin + window.start * item
    )
    if min((*window.shape, *window.stride, window.start), default=0) < 0 or tensor.offset + tensor.span * item > end:
        raise CorruptedFile(f"{path}: {name} reaches beyond the {end - begin:,} bytes of its storage",
                            hint="the file is damaged: fetch or write it again")  # fmt: skip
    return tensor


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
