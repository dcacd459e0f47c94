"""The unquantized model, a part at a time: a decoder without memory whose layers are filled and emptied again."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from leveret.errors import UnexpectedWeights
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.meta import shapes_only
from leveret.weights.load import read_config
from leveret.weights.placing import HEAD, assign, match_names, require_numbers, split
from leveret.weights.reader import WeightReader


class PartwiseModel:
    """The decoder of a directory, on the meta device until parts of it are asked for."""

    def __init__(self, source: Path, reader: WeightReader) -> None:
        self.directory = source
        self.config = read_config(source)
        with shapes_only():
            self.model = Decoder(self.config)
        self._reader = reader
        self._held = match_names(self.model, family_for(self.config.family), reader.tensors, source)
        self._shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        self._dtypes: dict[str, torch.dtype] = {}
        self.fill("embed_tokens", None)
        self.dtype = self.model.embed_tokens.weight.dtype
        if self.config.tie_word_embeddings:
            self._check_tied_head()
            self.model.tie_weights()
        else:
            self.fill("lm_head", self.dtype)
        self.fill("norm", self.dtype)

    def fill(self, module: str, dtype: torch.dtype | None) -> None:
        """Give the tensors below a module their values, in `dtype` (None: as they are stored)."""
        for stored, names in self._held.items():
            if any(name.startswith(f"{module}.") for name in names):
                label = f"{stored} in {self.directory}"
                require_numbers(self._reader.tensors[stored].dtype, label)
                for name, part in split(self._read(stored), names, self._shapes, label=label).items():
                    self._dtypes[name] = part.dtype
                    assign(self.model, name, part.to(dtype or part.dtype, copy=True).detach())

    def empty(self, module: str) -> None:
        """Take their memory from the tensors below a module."""
        self.model.get_submodule(module).to_empty(device="meta")

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype that one of our tensors has in the files; of one that was filled."""
        return self._dtypes[name]

    def linears(self, module: str) -> dict[str, nn.Linear]:
        """The Linears below a module."""
        found = self.model.get_submodule(module).named_modules()
        return {f"{module}.{name}": linear for name, linear in found if isinstance(linear, nn.Linear)}

    def _read(self, stored: str) -> Tensor:
        return self._reader.read(stored).view(self._reader.tensors[stored].shape)

    def _check_tied_head(self) -> None:
        for stored, names in self._held.items():
            if names == (HEAD,) and not torch.equal(self._read(stored), self.model.embed_tokens.weight):
                raise UnexpectedWeights(
                    f"{self.directory} has its own {HEAD}, but config.json ties the head to the embedding"
                )
