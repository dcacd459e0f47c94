"""The models to be merged, and for every tensor of the result which tensors it is made of; nothing is left over.

A model whose tensors are not those that its config asks for, another width or number of heads: each is named and
refused. What may differ but changes how the weights act (rope_theta, the window) is reported; the first model's value
then counts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leveret.errors import ConfigError, MissingWeights, UnexpectedWeights
from leveret.hub import resolve_whole_model
from leveret.merge.config import MergeConfig
from leveret.merge.settings import LAYER, is_embedding, layer_of
from leveret.model.config import ModelConfig
from leveret.weights.load import read_config
from leveret.weights.model_tensors import FolderTensors
from leveret.weights.placing import HEAD, RECOMPUTED
from leveret.weights.reader import Stored, WeightReader
from leveret.weights.safetensors import name_some, read_json

VOCABULARY = re.compile(r"(?:^|\.)(?:embed_tokens|lm_head)\.(?:weight|bias)$")
"""Tensors that have a row for each token."""

ROUTER = re.compile(r"\.(?:gate|router)\.weight$")

MUST_AGREE = (
    "family", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "tie_word_embeddings", "moe",
)  # fmt: skip
"""Fields without which the tensors of two models do not mean the same."""

MAY_DIFFER = ("max_position_embeddings", "rope", "rms_norm_eps", "sliding_window", "norm_scales_in_float32")
"""Fields that are the first model's in the result, and reported."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of the models."""

    name: str
    """As the config names it."""
    folder: Path
    config: ModelConfig
    reader: WeightReader

    @property
    def tensors(self) -> dict[str, Stored]:
        """What it stores, without what every model computes itself and a head that is the embedding."""
        tied = self.config.tie_word_embeddings
        return {
            name: stored
            for name, stored in self.reader.tensors.items()
            if not name.endswith(RECOMPUTED) and not (tied and name == HEAD)
        }


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One tensor of the result."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[tuple[int, str], ...]
    """(number of the source, its name there) of each tensor it is made of, in the order of the sources."""
    has_token_rows: bool = False


def open_sources(config: MergeConfig) -> list[Source]:
    """The base, if there is one, and the models, in this order."""
    names = [*([config.base] if config.base is not None else []), *config.models]
    return [_open(name) for name in names]


def differences(first: Source, other: Source, *, any_depth: bool = False) -> list[str]:
    """Fields of the config that differ and may; ConfigError names one that must not."""
    for field in MUST_AGREE:
        if field == "num_hidden_layers" and any_depth:
            continue
        ours, theirs = getattr(first.config, field), getattr(other.config, field)
        if ours != theirs:
            raise ConfigError(
                f"{field} is {_short(ours)} in {first.name} and {_short(theirs)} in {other.name}",
                hint="only models of one architecture and size can be merged",
            )
    return [
        f"{field} is {_short(getattr(first.config, field))} in {first.name}, {_short(getattr(other.config, field))} "
        f"in {other.name}"
        for field in MAY_DIFFER
        if getattr(first.config, field) != getattr(other.config, field)
    ]


def merged_pieces(sources: Sequence[Source], first: Source, rows: int | None, dtype: torch.dtype | None) -> list[Piece]:
    """A piece for every tensor of `first`, made of the tensors of that name of all sources.

    rows: of tensors with a row for each token; None: as in `first`.
    """
    for source in sources:
        _same_names(first, source)
    pieces = []
    for name, stored in first.tensors.items():
        token_rows = VOCABULARY.search(name) is not None
        pieces.append(
            Piece(
                name=name,
                shape=(rows, *stored.shape[1:]) if token_rows and rows is not None else stored.shape,
                dtype=dtype or stored.dtype,
                parts=tuple((number, name) for number in range(len(sources))),
                has_token_rows=token_rows,
            )
        )
    return pieces


def stacked_pieces(
    sources: Sequence[Source], layers: Sequence[tuple[int, int]], dtype: torch.dtype | None
) -> list[Piece]:
    """The chosen layers of each source one after another; the embedding is the first's, norm and head the last's.

    dtype: None: as the first source stores its tensors of the same kind.
    """
    kinds = {_renumbered(name, 0): stored.dtype for name, stored in sources[0].tensors.items()}
    pieces = []
    done = 0
    for number, (source, (start, stop)) in enumerate(zip(sources, layers, strict=True)):
        if not 0 <= start < stop <= source.config.num_hidden_layers:
            raise ConfigError(
                f"layers [{start}, {stop}] of {source.name}, which has {source.config.num_hidden_layers}",
                hint="a range is [first, end), counted from 0",
            )
        for name, stored in source.tensors.items():
            layer = layer_of(name)
            if layer is None:
                wanted = number == (0 if is_embedding(name) else len(sources) - 1)
            else:
                wanted = start <= layer < stop
            if wanted:
                new = name if layer is None else _renumbered(name, layer - start + done)
                kind = dtype or (stored.dtype if number == 0 else kinds.get(_renumbered(name, 0), stored.dtype))
                pieces.append(Piece(name=new, shape=stored.shape, dtype=kind, parts=((number, name),)))
        done += stop - start
    return pieces


def has_routers(pieces: Sequence[Piece]) -> bool:
    """Whether experts are merged: number by number, which is right only where the models descend from one."""
    return any(ROUTER.search(piece.name) for piece in pieces)


def _open(name: str) -> Source:
    folder = resolve_whole_model(name, purpose="merging models")
    model = read_config(folder)
    if "quantization_config" in read_json(folder / "config.json"):
        raise ConfigError(f"{name} is quantized", hint="merge the models it and the others were made of")
    with FolderTensors(folder) as whole:  # every tensor that the config asks for, and a tied head that is the embedding
        return Source(name=name, folder=folder, config=model, reader=whole.reader)


def _same_names(first: Source, other: Source) -> None:
    ours, theirs = set(first.tensors), set(other.tensors)
    if ours - theirs:
        raise MissingWeights(f"{len(ours - theirs)} tensors of {first.name} are not in {other.name}: "
                             f"{name_some(ours - theirs)}")  # fmt: skip
    if theirs - ours:
        raise UnexpectedWeights(f"{len(theirs - ours)} tensors of {other.name} are not in {first.name}: "
                                f"{name_some(theirs - ours)}", hint="nothing is left out silently")  # fmt: skip


def _renumbered(name: str, layer: int) -> str:
    return LAYER.sub(lambda found: found[0].replace(f".{found[1]}.", f".{layer}."), name, count=1)


def _short(value: object) -> str:
    """A value for a message; of a nested config, only what is not its default."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    set_fields = {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    }
    return ", ".join(f"{name} {setting!r}" for name, setting in set_fields.items()) or "default"
