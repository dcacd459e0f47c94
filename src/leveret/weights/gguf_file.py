"""An open GGUF file: its keys, and where its tensors lie; read from the head of the file, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.errors import CorruptedFile
from leveret.extras import require
from leveret.weights.bin_file import refuse_pointer


def gguf_package(purpose: str = "a GGUF file") -> Any:
    """The `gguf` package, or MissingExtra."""
    return require("gguf", extra="gguf", purpose=purpose)


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """An open file: its keys, and its tensors, which are read when asked for."""

    path: Path
    keys: dict[str, Any]
    tensors: dict[str, Any]
    """`gguf.ReaderTensor` by name."""

    def type_of(self, name: str) -> str:
        """`F32`, `Q4_0` ..."""
        kind: str = self.tensors[name].tensor_type.name
        return kind

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Rows first, as numpy and PyTorch have it; the file says it the other way round."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def divisors(self, name: str) -> list[float] | None:
        """The values of a float32 vector; None if there is none of this name."""
        return [float(value) for value in self.tensors[name].data] if name in self.tensors else None


def open_gguf(path: Path) -> GgufFile:
    """Read a file's head; CorruptedFile if it is none or cut short."""
    gguf = gguf_package("reading a GGUF file")
    with open(path, "rb") as start:
        refuse_pointer(path, start.read(64))
    try:
        reader = gguf.GGUFReader(path)
        keys = {field.name: field.contents() for field in reader.fields.values()}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise CorruptedFile(f"{path} is no whole GGUF file: {error}", hint="fetch or write it again") from error
    return GgufFile(path=path, keys=keys, tensors={tensor.name: tensor for tensor in reader.tensors})
