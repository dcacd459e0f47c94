"""Compressed data files as text: .gz by Python, .zst by the package `zstandard`; a cut is not taken for the end."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from leveret.extras import require

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COMPRESSED_SUFFIXES = frozenset({".gz", ".zst"})

_PACKED_BYTES = 1 << 16
"""Read at a time."""

_LARGEST_WINDOW = 1 << 31
"""Bytes that a frame may look back, as `zstd --long=31` writes them; the library refuses above 128 MiB unless told."""


def open_text(path: Path) -> TextIO:
    """The text of a file, unpacked by its suffix. Reading raises one of `unpacking_errors` when it is damaged."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return _as_text(gzip.open(path))
    if suffix == ".zst":
        return _as_text(io.BufferedReader(ZstandardFile(path)))
    return open(path, encoding="utf-8-sig", newline="\n")


def unpacking_errors(path: Path) -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    if path.suffix.lower() == ".zst":
        return (EOFError, _zstandard(path).ZstdError)
    return (EOFError, gzip.BadGzipFile, zlib.error)


class ZstandardFile(io.RawIOBase):
    """What the frames of a .zst file hold, one after the other (`pzstd` and `cat` make several of them).

    EOFError where the file ends within a frame: the package's own reader takes that for the end of the text.
    """

    def __init__(self, path: Path) -> None:
        self._decompressor = _zstandard(path).ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._file = io.FileIO(path)
        self._frame: Any = None
        self._packed = b""
        self._text = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """As many bytes as there are and fit; 0 at the end of the file."""
        while not self._text:
            self._packed = self._packed or self._file.read(_PACKED_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends before its end-of-frame mark")
                return 0
            self._unpack()
        into = memoryview(buffer).cast("B")
        count = min(len(into), len(self._text))
        into[:count] = self._text[:count]
        self._text = self._text[count:]
        return count

    def _unpack(self) -> None:
        """Hand all packed bytes to the frame that they begin or go on with; what follows its end stays packed."""
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        self._text = memoryview(self._frame.decompress(self._packed))
        self._packed = b""
        if self._frame.eof:
            self._packed = self._frame.unused_data
            self._frame = None

    def close(self) -> None:
        """The file too."""
        self._file.close()
        super().close()


def _as_text(file: io.BufferedReader | gzip.GzipFile) -> TextIO:
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")


def _zstandard(path: Path) -> Any:
    return require("zstandard", extra="data", purpose=f"reading {path.name}")
