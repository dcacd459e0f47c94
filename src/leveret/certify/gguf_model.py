"""What Leveret makes of a GGUF file, without a folder being written: a Decoder, and the tokenizer with its template."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch

from leveret.certify.thresholds import Numerics
from leveret.model.decoder import Decoder
from leveret.model.meta import shapes_only
from leveret.tokenizer.files import Tokenizer
from leveret.weights.gguf_file import GgufFile
from leveret.weights.gguf_read import GgufTensors, restore_companions
from leveret.weights.placing import assign

WHOLE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def model_in(file: GgufFile, dtype: torch.dtype | None = None) -> Decoder:
    """The model of a file, in `dtype` or as its matrices are stored; a WeightsError when it is none of ours."""
    source = GgufTensors(file)
    with shapes_only():
        model = Decoder(source.config)
    places = model.state_dict()
    for name, stored in source.dtypes.items():
        value = torch.empty(places[name].shape, dtype=dtype or stored)
        flat = value.view(-1)
        for start, values in source.blocks(name):
            flat[start : start + len(values)] = values
        assign(model, name, value)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def tokenizer_in(file: GgufFile) -> Tokenizer | None:
    """The tokenizer of a file; None where it has one that cannot be rebuilt here."""
    with tempfile.TemporaryDirectory() as folder:
        restore_companions(file, Path(folder))
        return Tokenizer.load(folder) if (Path(folder) / "tokenizer.json").is_file() else None


def numerics_in(file: GgufFile) -> Numerics:
    """How the matrices of a file are stored: the coarsest of their types decides."""
    kinds = {file.type_of(name) for name, tensor in file.tensors.items() if len(tensor.shape) > 1}
    bits = [int(found[0]) for kind in kinds - WHOLE.keys() if (found := re.search(r"\d", kind))]
    if bits:
        return Numerics(dtype="float32", bits=min(bits))
    return Numerics(dtype=next(WHOLE[kind] for kind in ("BF16", "F16", "F32") if kind in kinds), bits=None)
