"""A model directory -> one GGUF file: config, tokenizer and tensors, as llama.cpp, Ollama and LM Studio read them.

    header, keys (gguf_metadata.py, gguf_tokenizer.py), names and shapes, then the tensors one after another

One tensor of the file is in memory at a time (for a mixture: one projection of all experts of a layer). Rounding is
the `gguf` package's own, bit-identical to llama.cpp's for these types. Write into the draft
of an `atomic_directory`: half a file then never has a name.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leveret.errors import WeightsError
from leveret.hub import is_quantized
from leveret.model.config import ModelConfig
from leveret.weights.gguf_file import gguf_package
from leveret.weights.gguf_layout import (
    ARCHITECTURE,
    Array,
    FileType,
    Place,
    places,
    stored_type,
    to_file,
)  # fmt: skip
from leveret.weights.gguf_metadata import CONFIG_KEY, ROPE_TENSOR, limits, model_keys, rope_divisors
from leveret.weights.gguf_tokenizer import FoundRule, TokenizerKeys
from leveret.weights.load import read_config
from leveret.weights.model_tensors import FolderTensors
from leveret.weights.rewrite import refuse_infinite
from leveret.weights.safetensors import read_json

CARRIED_KEY = "leveret.files"
"""The small files of the model's folder, by name, as JSON: what the way back restores."""


@dataclass(frozen=True, kw_only=True)
class GgufReport:
    """What was written."""

    kind: str
    rule: FoundRule
    tensors: int
    bytes: int
    fallbacks: int
    """Matrices in float16 because their rows are no whole number of blocks."""
    notices: tuple[str, ...]
    """What the file cannot say about the model."""


def write_gguf(
    source: Path,
    target: Path,
    kind: FileType,
    tokenizer: TokenizerKeys,
    *,
    name: str,
    carried: dict[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GgufReport:
    """Write the model of a directory as `target`. WeightsError if its weights are quantized already, or
    overflow, or are no numbers.

    carried: small files that travel in the key `leveret.files`.
    progress: called with (tensors done, tensors in all).
    """
    if is_quantized(source):
        raise WeightsError(f"{source} is quantized already; GGUF has formats of its own",
                           hint="export the model it was made of, with type=q8_0 or q4_0")  # fmt: skip
    config = read_config(source)
    found = places(config)
    divisors = rope_divisors(config)
    gguf = gguf_package("writing a GGUF file")
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    try:
        _write_keys(writer, config, source, kind, name, carried or {})
        tokenizer.write(writer)
        for place in found:
            _announce(writer, place.name, place.shape, stored_type(place, kind))
        if divisors is not None:
            _announce(writer, ROPE_TENSOR, divisors.shape, gguf.GGMLQuantizationType.F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with FolderTensors(source) as values:
            for number, place in enumerate(found, start=1):
                writer.write_tensor_data(_encoded(place, values, stored_type(place, kind)))
                if progress is not None:
                    progress(number, len(found))
        if divisors is not None:
            writer.write_tensor_data(divisors)
    except OSError as error:
        if error.errno is None:  # numpy counts what it could write, and does not say why that was not all
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise
    finally:
        writer.close()
    halves = [place for place in found if kind[0] == "q" and stored_type(place, kind).name == "F16"]
    return GgufReport(
        kind=kind,
        rule=tokenizer.rule,
        tensors=len(found) + (divisors is not None),
        bytes=target.stat().st_size,
        fallbacks=len(halves),
        notices=(*limits(config), *([told] if (told := tokenizer.rule.notice()) else [])),
    )


def _write_keys(
    writer: Any, config: ModelConfig, source: Path, kind: FileType, name: str, carried: dict[str, str]
) -> None:
    gguf = gguf_package()
    writer.add_type("model")
    writer.add_name(name)
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
    writer.add_file_type(gguf.LlamaFileType[kinds[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in model_keys(config).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        add[type(value)](f"{ARCHITECTURE}.{key}", value)
    writer.add_string(CONFIG_KEY, json.dumps(read_json(source / "config.json")))
    writer.add_string(CARRIED_KEY, json.dumps(carried, ensure_ascii=False))


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: Any) -> None:
    """Tell the writer what will come; for blocks of bytes it wants the shape in bytes."""
    gguf = gguf_package()
    plain = {"F32": np.float32, "F16": np.float16}
    if kind.name in plain:
        dtype = np.dtype(plain[kind.name])
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
        return
    stored = gguf.quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)


def _encoded(place: Place, values: FolderTensors, kind: Any) -> Array:
    gguf = gguf_package()
    parts = {name: values.read(name) for name in place.parts}
    for name, part in parts.items():
        refuse_infinite(name, part)  # in blocks a NaN would be some number again
    whole = to_file(place, parts)
    if kind.name == "F16" and np.abs(whole).max(initial=0) > np.finfo(np.float16).max:
        raise WeightsError(f"{place.parts[0]} has values beyond float16's largest, 65504", hint="choose type=bf16")
    encoded: Array = gguf.quants.quantize(np.ascontiguousarray(whole), kind)
    return encoded
