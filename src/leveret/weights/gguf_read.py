"""A GGUF file -> a model directory: the way back from gguf.py, and in from files of other programs.

Types whose decoding the `gguf` package knows (f32, f16, bf16, the 4, 5 and 8 bit blocks, the K types) are read. From
f32, f16 and bf16 the numbers are the file's to the bit; from blocks they are what llama.cpp multiplies with. A file
written here brings config, tokenizer, template and tools exactly. One of another program brings its config from
`llama.*`, and its tokenizer where the file holds a tokenizer.json or is a BPE with a rule that is known here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models

from leveret.errors import MissingWeights, ShapeMismatch, UnexpectedWeights, WeightsError
from leveret.model.decoder import Decoder
from leveret.tokenizer.files import Tokenizer
from leveret.weights.gguf import CARRIED_KEY
from leveret.weights.gguf_file import GgufFile, gguf_package, open_gguf
from leveret.weights.gguf_layout import from_file, places
from leveret.weights.gguf_metadata import ROPE_TENSOR, config_from
from leveret.weights.gguf_tokenizer import CONTROL, RULES, USER_DEFINED, pre_tokenizer
from leveret.weights.placing import assign
from leveret.weights.safetensors import name_some
from leveret.weights.save import save_model

WHOLE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CARRIED_FILES = (
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tools.json",
)  # fmt: skip
"""Small files that a file of ours brings back."""


def restore_folder(source: Path, target: Path) -> list[str]:
    """Write the model of a GGUF file as a folder; returns what could not be brought along, in sentences.

    Write into the draft of an `atomic_directory`.
    """
    file = open_gguf(source)
    model = restore_model(file)
    carried = json.loads(file.keys.get(CARRIED_KEY) or "{}")
    save_model(model, target)
    tokenizer = restore_tokenizer(file)
    if tokenizer is None:
        return [f"{source.name} has no tokenizer that can be rebuilt; copy tokenizer.json from the original folder"]
    tokenizer.save(target)
    for name in CARRIED_FILES:
        if name in carried:
            (target / name).write_text(carried[name], encoding="utf-8")
    return []


def restore_model(file: GgufFile) -> Decoder:
    """The Decoder of a file, in the type of its embedding (float16 if that is in blocks)."""
    config = config_from(file.keys)
    if "output.weight" in file.tensors and config.tie_word_embeddings:
        raise UnexpectedWeights(f"{file.path} has an output.weight, but its config ties the head to the embedding")
    if "output.weight" not in file.tensors and not config.tie_word_embeddings:
        config = replace(config, tie_word_embeddings=True)
    wanted = {place.name: place for place in places(config)}
    if missing := set(wanted) - set(file.tensors):
        raise MissingWeights(f"{file.path} lacks {name_some(missing)}", hint="fetch or write the file again")
    if strange := set(file.tensors) - set(wanted) - {ROPE_TENSOR}:
        raise UnexpectedWeights(
            f"{file.path} holds {name_some(strange)}, which have no place in a {config.family} model"
        )
    with torch.device("meta"):
        model = Decoder(config)
    dtype = WHOLE.get(file.type_of("token_embd.weight"), torch.float16)
    for name, place in wanted.items():
        if file.shape_of(name) != place.shape:
            raise ShapeMismatch(f"{name} in {file.path} has shape {file.shape_of(name)}, expected {place.shape}")
        for ours, part in from_file(place, _decoded(file, name)).items():
            assign(model, ours, part.to(dtype))
    model.tie_weights()
    return model


def _decoded(file: GgufFile, name: str) -> np.ndarray[Any, Any]:
    gguf = gguf_package()
    tensor = file.tensors[name]
    try:
        values: np.ndarray[Any, Any] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except RuntimeError as error:
        raise WeightsError(f"{name} in {file.path} is stored as {file.type_of(name)}, which cannot be decoded here",
                           hint="convert the file to f16 with llama.cpp's llama-quantize first") from error  # fmt: skip
    return values.reshape(file.shape_of(name))


def restore_tokenizer(file: GgufFile) -> Tokenizer | None:
    """The tokenizer and template of a file; None where it has none that can be rebuilt."""
    keys = file.keys
    text = keys.get("tokenizer.huggingface.json") or _rebuilt(keys)
    if text is None:
        return None
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    ids = {role: keys.get(f"tokenizer.ggml.{name}_token_id") for role, name in names.items()}
    tokens = {role: None if index is None else keys["tokenizer.ggml.tokens"][index] for role, index in ids.items()}
    return Tokenizer(text, **tokens, chat_template=keys.get("tokenizer.chat_template"))


def _rebuilt(keys: dict[str, Any]) -> str | None:
    """A tokenizer.json from a BPE vocabulary, its merges and the name of its rule; None if one of them is not known."""
    patterns = dict(RULES).get(keys.get("tokenizer.ggml.pre", ""))
    if keys.get("tokenizer.ggml.model") != "gpt2" or patterns is None:
        return None
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    added = [
        {"id": index, "content": token, "special": kind == CONTROL, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    outside = {entry["content"] for entry in added}
    vocabulary = {token: index for index, token in enumerate(tokens) if token not in outside}
    merges = [tuple(merge.split(" ", 1)) for merge in keys["tokenizer.ggml.merges"]]
    engine = Engine(models.BPE(vocab=vocabulary, merges=merges))
    engine.decoder = decoders.ByteLevel()
    engine.pre_tokenizer = pre_tokenizer(patterns)
    return json.dumps(json.loads(engine.to_str()) | {"added_tokens": added})
