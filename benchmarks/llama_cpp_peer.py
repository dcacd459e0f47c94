"""llama.cpp as a side of a benchmark, through llama-cpp-python's low-level calls: prompts, and many streams at once.

Its best settings, as its own benchmark programs have them: as many threads as we get, prompts in micro-batches of 512,
weights repacked for the processor (its default), every stream a sequence of its own in one batch, and flash attention
on or off, whichever is faster here for the work at hand. Only the last logits of a prompt are asked for.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MICRO_BATCH = 512


class LlamaCpp:
    """One model, and a context of `streams` sequences of `tokens` each."""

    def __init__(self, path: Path, *, threads: int, streams: int, tokens: int, flash: bool) -> None:
        import llama_cpp

        self._library: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, f"llama.cpp cannot load {path}"
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = streams * tokens, streams
        settings.n_batch, settings.n_ubatch = max(MICRO_BATCH, streams), MICRO_BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = int(flash)
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        assert self._context, "llama.cpp cannot make a context"
        self._batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
        self._size = settings.n_batch
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def close(self) -> None:
        """Give the memory back."""
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def forget(self) -> None:
        """Empty all sequences."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def read(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Read a prompt into each sequence; the likeliest next id of each."""
        entries = [
            (token, place, stream, place == len(prompt) - 1)
            for stream, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        chosen: list[int] = []
        for first in range(0, len(entries), self._size):
            chosen += self._feed(entries[first : first + self._size])
        return chosen

    def go_on(self, ids: list[int], place: int, count: int) -> list[list[int]]:
        """Greedily: `ids` are the next of each sequence, at `place`; the `count` that follow them."""
        answers: list[list[int]] = [[] for _ in ids]
        for step in range(count):
            ids = self._feed([(token, place + step, stream, True) for stream, token in enumerate(ids)])
            for answer, token in zip(answers, ids, strict=True):
                answer.append(token)
        return answers

    def logits(self, prompt: Sequence[int]) -> np.ndarray:
        """After the last id of a prompt."""
        self.forget()
        self.read([prompt])
        return self._last(self._library.llama_get_logits_ith(self._context, -1)).copy()

    def all_logits(self, ids: Sequence[int]) -> np.ndarray:
        """After each id of a text, (ids, vocabulary)."""
        self.forget()
        rows = []
        for first in range(0, len(ids), MICRO_BATCH):
            part = ids[first : first + MICRO_BATCH]
            self._feed([(token, first + at, 0, True) for at, token in enumerate(part)])
            rows += [
                self._last(self._library.llama_get_logits_ith(self._context, at)).copy() for at in range(len(part))
            ]
        return np.stack(rows)

    def _feed(self, entries: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        batch = self._batch
        batch.n_tokens = len(entries)
        for at, (token, place, stream, wanted) in enumerate(entries):
            batch.token[at], batch.pos[at], batch.logits[at] = token, place, wanted
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = stream
        code = self._library.llama_decode(self._context, batch)
        assert code == 0, f"llama_decode gave {code}"
        wanted_at = (at for at, entry in enumerate(entries) if entry[3])
        return [int(self._last(self._library.llama_get_logits_ith(self._context, at)).argmax()) for at in wanted_at]

    def _last(self, logits: Any) -> np.ndarray:
        return np.ctypeslib.as_array(logits, shape=(self.vocabulary,))


def faster_attention(path: Path, *, threads: int, streams: int, prompt: int, tokens: int) -> bool:
    """Whether flash attention is the faster setting for `streams` prompts of this length and `tokens` answers."""
    seconds = {}
    for flash in (False, True):
        llama = LlamaCpp(path, threads=threads, streams=streams, tokens=prompt + tokens + 1, flash=flash)
        for _ in range(2):  # the first is not counted
            llama.forget()
            began = time.perf_counter()
            first = llama.read(
                [[(7 * at + stream) % llama.vocabulary for at in range(prompt)] for stream in range(streams)]
            )
            llama.go_on(first, prompt, tokens)
            seconds[flash] = time.perf_counter() - began
        llama.close()
    return seconds[True] < seconds[False]
