"""Compressed text files: .gz and .zst read as text, and an error where one ends too early.

A file that was cut short holds the beginning of its text. gzip says so by itself; the reader of the package
`zstandard` stops as if that were all, so frames are taken apart here and the last one must be whole.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from leveret.extras import require

COMPRESSED_SUFFIXES = frozenset({".gz", ".zst"})

_PIECE_BYTES = 1 << 14
"""What is unpacked at a time: little, as it may become a thousand times as much."""


def open_unpacked(path: Path) -> TextIO:
    """A file as UTF-8 text, unpacked if its name says that it is compressed. Lines end at a line feed alone."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="\n")
    if suffix == ".zst":
        frames = _Frames(_zstandard(path), open(path, "rb"))  # noqa: SIM115  closed with the text
        return io.TextIOWrapper(io.BufferedReader(frames, _PIECE_BYTES), encoding="utf-8-sig", newline="\n")
    return open(path, encoding="utf-8-sig", newline="\n")


def unpacking_errors(path: Path) -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    if path.suffix.lower() == ".zst":
        return (EOFError, _zstandard(path).ZstdError)
    return (EOFError, gzip.BadGzipFile, zlib.error)


class _Frames(io.RawIOBase):
    """The bytes in the frames of a .zst file, one frame after the other. EOFError when the last is not whole."""

    def __init__(self, zstandard: Any, file: BinaryIO) -> None:
        self._unpacker = zstandard.ZstdDecompressor()
        self._file = file
        self._frame: Any = None
        """The one being read; None between two."""
        self._packed = b""
        self._unpacked = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._unpacked and self._read_more():
            pass
        count = min(len(view), len(self._unpacked))
        view[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count

    def _read_more(self) -> bool:
        """Unpack the next piece, which may give nothing yet; False at the end of the file."""
        packed = self._packed or self._file.read(_PIECE_BYTES)
        self._packed = b""
        if not packed:
            if self._frame is not None:
                raise EOFError("the compressed file ended before its last frame did")
            return False
        if self._frame is None:
            self._frame = self._unpacker.decompressobj()
        self._unpacked = self._frame.decompress(packed)
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _zstandard(path: Path) -> Any:
    return require("zstandard", extra="data", purpose=f"reading {path.name}")
