"""A model's tensors by our names, wherever they are stored, in blocks: what converting and exporting read.

    with FolderTensors.open(folder) as source:
        for start, values in source.blocks("layers.0.mlp.up_proj.weight"):   # flat, in order, never large
            ...

Who opens one knows that it is whole: every tensor that the config asks for is there once, with its shape, and nothing
else is (`placing.match_names`). GGUF files have such a class of their own (gguf_read.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from leveret.errors import ShapeMismatch, UnexpectedWeights, WeightsError
from leveret.hub import is_quantized
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.meta import shapes_only
from leveret.weights.load import read_config
from leveret.weights.placing import HEAD, match_names, require_numbers
from leveret.weights.reader import WeightReader
from leveret.weights.safetensors import WeightFiles

BLOCK_VALUES = 1 << 20
"""Values of a block: 4 MiB in float32."""


class ModelTensors(Protocol):
    """The tensors of one model."""

    @property
    def config(self) -> ModelConfig:
        """The model's config."""

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Our name -> as what its values are read."""

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(place of the first value in row-major order, flat values) of one tensor, in order."""


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of our tensors, by our names, and without the head if it is the embedding."""
    with shapes_only():
        shapes = {name: tuple(tensor.shape) for name, tensor in Decoder(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes[HEAD]
    return shapes


class FolderTensors:
    """Those of a model directory. A context manager: the files are open inside it.

    MissingWeights, UnexpectedWeights and ShapeMismatch name what does not fit; WeightsError if it is quantized.
    config, files: of a model whose files do not lie as in a model directory.
    """

    def __init__(self, directory: Path, config: ModelConfig | None = None, files: WeightFiles | None = None) -> None:
        if config is None:
            if is_quantized(directory):
                raise WeightsError(f"{directory} is quantized already: its matrices are no plain numbers",
                                   hint="take the model that it was made of")  # fmt: skip
            config = read_config(directory)
        self.config = config
        self.reader = WeightReader(directory, files)
        family = family_for(config.family)
        with shapes_only():
            model = Decoder(config)
        self.held = match_names(model, family, self.reader.tensors, directory)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._place: dict[str, tuple[str, int]] = {}
        for stored, ours in self.held.items():
            self._check(stored, ours)
            start = 0
            for name in ours:
                self._place[name] = (stored, start)
                start += math.prod(self.shapes[name])

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Our name -> as it is stored."""
        return {name: self.reader.tensors[stored].dtype for name, (stored, _) in self._place.items() if self._own(name)}

    @property
    def ignored(self) -> list[str]:
        """Names in the files that no model needs (old files carry RoPE's frequencies)."""
        return sorted(set(self.reader.tensors) - set(self.held))

    def __enter__(self) -> FolderTensors:
        self.reader.__enter__()
        if self.config.tie_word_embeddings and HEAD in self._place:
            self._compare_head()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.__exit__(kind, error, trace)

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """Flat values of one tensor, in order; see ModelTensors."""
        stored, begin = self._place[name]
        count = math.prod(self.shapes[name])
        for start in range(0, count, BLOCK_VALUES):
            stop = min(start + BLOCK_VALUES, count)
            yield start, self.reader.read(stored, begin + start, begin + stop)

    def read(self, name: str) -> Tensor:
        """One whole tensor."""
        stored, begin = self._place[name]
        shape = self.shapes[name]
        return self.reader.read(stored, begin, begin + math.prod(shape)).reshape(shape)

    def _own(self, name: str) -> bool:
        return not (self.config.tie_word_embeddings and name == HEAD)

    def _check(self, stored: str, ours: tuple[str, ...]) -> None:
        rows = sum(self.shapes[name][0] for name in ours)
        wanted = (rows, *self.shapes[ours[0]][1:])
        found = self.reader.tensors[stored]
        place = self.reader.directory / found.file
        require_numbers(found.dtype, f"{stored} in {place}")
        if found.shape != wanted:
            raise ShapeMismatch(
                f"{stored} in {place} has shape {found.shape}, the config asks for {wanted}",
                hint="config.json (vocab_size, hidden_size, heads ...) and the weights do not belong together",
            )

    def _compare_head(self) -> None:
        pairs = zip(self.blocks(HEAD), self.blocks("embed_tokens.weight"), strict=True)
        if not all(torch.equal(head.to(embedding.dtype), embedding) for (_, head), (_, embedding) in pairs):
            raise UnexpectedWeights(
                f"{self.reader.directory} has its own {HEAD}, but config.json ties the head to the embedding",
                hint='set "tie_word_embeddings": false in config.json, or remove the tensor',
            )
