"""The backend `llama.cpp`: a GGUF file run by llama.cpp in this process, through llama-cpp-python's low-level calls.

All sequences share one context and are fed in one batch. Logits come back in float32 and our sampler chooses, so
constraints, seeds and stops mean here what they mean elsewhere.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leveret.engine.backends.sequences import Feed
from leveret.errors import WeightsError
from leveret.extras import require

MOST_CONTEXT = 8192
"""Tokens of one sequence at most: llama.cpp takes the memory of all of them at once."""


class LlamaCppSequences:
    """`Sequences` over a GGUF file."""

    def __init__(self, file: Path, *, max_sequences: int = 8, context_tokens: int | None = None) -> None:
        """context_tokens: of one sequence; None: what the model was trained for, at most MOST_CONTEXT.

        Raises MissingExtra without llama-cpp-python, WeightsError when llama.cpp cannot load the file.
        """
        library = self._library = _started()[0]
        self._model: Any = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
        if not self._model:
            raise WeightsError(f"llama.cpp cannot load {file}", hint="look at it with: leveret inspect " + str(file))
        trained = int(library.llama_model_n_ctx_train(self._model))
        self.context_tokens = min(trained, context_tokens or MOST_CONTEXT)
        self.max_sequences = max_sequences
        self.max_fed_tokens = max(512, max_sequences)
        self.vocab_size = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model)))
        self._context: Any = library.llama_init_from_model(self._model, self._settings())
        if not self._context:
            library.llama_model_free(self._model)
            raise WeightsError(
                f"llama.cpp cannot make room for {max_sequences} sequences of {self.context_tokens} tokens with {file}"
            )
        self._batch = library.llama_batch_init(self.max_fed_tokens, 0, 1)
        self._memory = library.llama_get_memory(self._context)
        self._free = list(range(max_sequences - 1, -1, -1))
        self._lengths: dict[int, int] = {}

    def open(self) -> int:
        """A free sequence of the context."""
        sequence = self._free.pop()
        self._lengths[sequence] = 0
        return sequence

    def feed(self, feeds: Sequence[Feed]) -> Tensor:
        """All of them in one batch."""
        batch, places = self._batch, []
        at = 0
        for sequence, ids, last in feeds:
            for token in ids:
                batch.token[at], batch.pos[at], batch.logits[at] = token, self._lengths[sequence], False
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                self._lengths[sequence] += 1
                at += 1
            if last:
                batch.logits[at - 1] = True
                places.append(at - 1)
        batch.n_tokens = at
        code = self._library.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama.cpp could not take a batch of {at} tokens (code {code})")
        rows = [self._logits(place) for place in places]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, self.vocab_size)

    def close(self, sequence: int) -> None:
        """Empty a sequence and give it back."""
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        del self._lengths[sequence]
        self._free.append(sequence)

    def end(self) -> None:
        """Free llama.cpp's memory; a second call does nothing."""
        if self._context is None:
            return
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)
        self._context = self._model = None

    def _settings(self) -> Any:
        settings = self._library.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = self.max_sequences * self.context_tokens, self.max_sequences
        settings.n_batch, settings.n_ubatch = self.max_fed_tokens, min(512, self.max_fed_tokens)
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        return settings

    def _logits(self, place: int) -> np.ndarray:
        """After the id at this place of the batch; copied, as the next batch overwrites it."""
        found = self._library.llama_get_logits_ith(self._context, place)
        return np.ctypeslib.as_array(found, shape=(self.vocab_size,)).copy()


@cache
def _started() -> tuple[Any, Any]:
    """The library, initialized, and what silences it: a callback that must live as long as the process does."""
    library = require("llama_cpp", extra="llama-cpp", purpose="the backend llama.cpp")
    silence = library.llama_log_callback(lambda level, text, data: None)
    library.llama_log_set(silence, ctypes.c_void_p(0))
    library.llama_backend_init()
    return library, silence
