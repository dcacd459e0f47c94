"""The backend `transformers`: the model as transformers defines and runs it, also families that we do not have.

Each sequence has a cache of its own and is fed alone, as people use transformers for one chat. It is there to compare
with, and for models that nothing else here can read; it is not fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leveret.engine.backends.sequences import Feed
from leveret.errors import WeightsError
from leveret.extras import require


class TransformersSequences:
    """`Sequences` over a model directory."""

    max_sequences = 64
    max_fed_tokens = 2048

    def __init__(self, directory: Path, *, dtype: str | torch.dtype | None, device: str) -> None:
        """Raises MissingExtra without transformers, WeightsError when it cannot load the directory."""
        self._library = require("transformers", extra="transformers", purpose="the backend transformers")
        name = str(dtype).removeprefix("torch.") if dtype else "auto"
        try:
            model = self._library.AutoModelForCausalLM.from_pretrained(str(directory), dtype=name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise WeightsError(f"transformers cannot load {directory}: {error}") from error
        self._model: Any = model.eval().to(device)
        self._caches: dict[int, Any] = {}
        self._opened = 0
        text = model.config.get_text_config()
        self.vocab_size = int(text.vocab_size)
        self.context_tokens = int(text.max_position_embeddings)

    def open(self) -> int:
        """A new cache."""
        self._opened += 1
        self._caches[self._opened] = self._library.DynamicCache(config=self._model.config)
        return self._opened

    def feed(self, feeds: Sequence[Feed]) -> Tensor:
        """One forward for each sequence."""
        wanted = []
        for sequence, ids, last in feeds:
            given = torch.tensor([list(ids)], device=self._model.device)
            cache = self._caches[sequence]
            logits = self._model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            if last:
                wanted.append(logits[0, -1].float().cpu())
        return torch.stack(wanted) if wanted else torch.empty(0, self.vocab_size)

    def close(self, sequence: int) -> None:
        """Drop its cache."""
        del self._caches[sequence]

    def end(self) -> None:
        """Drop everything."""
        self._caches.clear()
        self._model = None
