"""The model in a GGUF file: its tensors by our names, decoded in blocks, and its config and tokenizer as our files.

Every type whose decoding the `gguf` package knows (f32, f16, bf16, the 4, 5 and 8 bit blocks, the K types, the IQ
types ...) is read. From f32, f16 and bf16 the numbers are the file's to the bit; from blocks they are what llama.cpp
multiplies with. A file written here brings config, tokenizer, template and tools exactly. One of another program brings
its config from `llama.*`, and its tokenizer where gguf_rebuilt.py can build it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leveret.errors import MissingWeights, ShapeMismatch, UnexpectedWeights, WeightsError
from leveret.paths import atomic_write
from leveret.tokenizer.files import Tokenizer
from leveret.weights import model_tensors
from leveret.weights.gguf import CARRIED_KEY
from leveret.weights.gguf_carried import refuse_other_tokens, take_changes
from leveret.weights.gguf_file import GgufFile, gguf_package
from leveret.weights.gguf_layout import Array, Place, half_split, places
from leveret.weights.gguf_metadata import CONFIG_KEY, ROPE_TENSOR, config_from
from leveret.weights.gguf_rebuilt import rebuilt
from leveret.weights.safetensors import name_some

WHOLE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CARRIED_FILES = (
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tools.json",
)  # fmt: skip
"""Small files that a file of ours brings back."""


class GgufTensors:
    """The tensors of a GGUF file; see ModelTensors.

    MissingWeights, UnexpectedWeights and ShapeMismatch name what does not fit, WeightsError a type that cannot be
    decoded, ConfigError a network that is not one of ours.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        config = config_from(file.keys, file.divisors(ROPE_TENSOR))
        if "output.weight" in file.tensors and config.tie_word_embeddings:
            raise UnexpectedWeights(f"{file.path} has an output.weight, but its config ties the head to the embedding")
        if "output.weight" not in file.tensors and not config.tie_word_embeddings:
            config = replace(config, tie_word_embeddings=True)
        self.config = config
        self._check(places(config))
        self._place = {name: (place, number) for place in places(config) for number, name in enumerate(place.parts)}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """One for all tensors: as the matrices are stored, float32 if in several whole types, float16 if in blocks."""
        kinds = {self.file.type_of(place.name) for place, _ in self._place.values() if not place.whole}
        whole = kinds <= set(WHOLE)
        dtype = (WHOLE[next(iter(kinds))] if len(kinds) == 1 else torch.float32) if whole else torch.float16
        return dict.fromkeys(self._place, dtype)

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """Flat float32 values of one tensor (as stored, if it is not in blocks), in order."""
        place, number = self._place[name]
        tensor = self.file.tensors[place.name]
        data = tensor.data[number] if len(place.shape) == 3 else tensor.data
        columns = place.shape[-1]
        if place.heads is not None:
            yield 0, _flat(half_split(self._decoded(place, data), place.heads))
            return
        if len(place.shape) == 1:
            yield 0, _flat(self._decoded(place, data))
            return
        step = max(1, model_tensors.BLOCK_VALUES // columns)
        for row in range(0, place.shape[-2], step):
            yield row * columns, _flat(self._decoded(place, data[row : row + step]))

    def _decoded(self, place: Place, data: Array) -> Array:
        """Rows of one tensor as numbers; bfloat16 and float16 as float32, which holds them exactly."""
        kind = self.file.tensors[place.name].tensor_type
        try:
            values: Array = gguf_package().quants.dequantize(np.ascontiguousarray(data), kind)
        except (RuntimeError, KeyError) as error:
            raise WeightsError(
                f"{place.name} in {self.file.path} is stored as {self.file.type_of(place.name)}, which cannot be "
                "decoded here",
                hint="convert the file to f16 with llama.cpp's llama-quantize first",
            ) from error
        return values

    def _check(self, found: list[Place]) -> None:
        wanted = {place.name: place for place in found}
        file = self.file
        if missing := set(wanted) - set(file.tensors):
            raise MissingWeights(f"{file.path} lacks {name_some(missing)}", hint="fetch or write the file again")
        if strange := set(file.tensors) - set(wanted) - {ROPE_TENSOR}:
            raise UnexpectedWeights(
                f"{file.path} holds {name_some(strange)}, which have no place in a {self.config.family} model",
                hint="its network has parts that the families here do not have (biases, norms of q and k ...)",
            )
        for name, place in wanted.items():
            if file.shape_of(name) != place.shape:
                raise ShapeMismatch(f"{name} in {file.path} has shape {file.shape_of(name)}, expected {place.shape}",
                                    hint="its keys and its tensors do not belong together")  # fmt: skip


def carried_config(file: GgufFile) -> dict[str, Any] | None:
    """The config.json that the model had, if the file carries it."""
    text = file.keys.get(CONFIG_KEY)
    return json.loads(text) if text else None


def restore_companions(file: GgufFile, target: Path) -> list[str]:
    """Write tokenizer, template and other small files into a folder; what could not be brought, in sentences.

    Where a file of ours was given another template or other special tokens since, these are taken, as they are by every
    other program.
    """
    tokenizer = _tokenizer(file)
    if tokenizer is None:
        kind, pre = file.keys.get("tokenizer.ggml.model"), file.keys.get("tokenizer.ggml.pre")
        return [f"{file.path.name} has a tokenizer ({kind}, {pre}) that cannot be rebuilt here; copy tokenizer.json "
                "from the original folder"]  # fmt: skip
    tokenizer.save(target)
    for name, content in json.loads(file.keys.get(CARRIED_KEY) or "{}").items():
        if name in CARRIED_FILES:
            atomic_write(target / name, content)
    if CARRIED_KEY in file.keys and (changed := take_changes(file, tokenizer, target)):
        return [f"{file.path.name} was given {changed} after it was written; what its keys say is taken"]
    return []


def _flat(values: Array) -> Tensor:
    return torch.from_numpy(np.array(values, order="C", copy=True)).reshape(-1)


def _tokenizer(file: GgufFile) -> Tokenizer | None:
    keys = file.keys
    text = keys.get("tokenizer.huggingface.json")
    if text and CARRIED_KEY in keys:
        refuse_other_tokens(file, text)
    text = text or rebuilt(keys)
    if text is None:
        return None
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    ids = {role: keys.get(f"tokenizer.ggml.{name}_token_id") for role, name in names.items()}
    texts = keys.get("tokenizer.ggml.tokens", ())
    tokens = {role: texts[index] for role, index in ids.items() if index is not None and index < len(texts)}
    return Tokenizer(text, **tokens, chat_template=keys.get("tokenizer.chat_template"))
