"""The first form, which every other is compared with: what it answered once is kept, so that it runs only once.

Logits are kept up to MOST_BYTES, in the order in which they were asked for; what does not fit is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from leveret.certify.form import Form, Reader, Stops
from leveret.certify.thresholds import Numerics
from leveret.certify.zoo import Fixture
from leveret.engine.request import SamplingParams
from leveret.tokenizer.files import Tokenizer

MOST_BYTES = 512 * 2**20


class Remembered:
    """A form whose answers are kept."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self._logits: dict[tuple[int, ...], torch.Tensor] = {}
        self._continued: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}
        self._bytes = 0

    @property
    def name(self) -> str:
        """The form's."""
        return self.form.name

    @property
    def reader(self) -> Reader:
        """The form's."""
        return self.form.reader

    @property
    def path(self) -> Path:
        """The form's."""
        return self.form.path

    @property
    def numerics(self) -> Numerics:
        """The form's."""
        return self.form.numerics

    @property
    def model(self) -> nn.Module | None:
        """The form's."""
        return self.form.model

    @property
    def own_tokenizer(self) -> Tokenizer:
        """The form's."""
        return self.form.own_tokenizer

    @property
    def context_tokens(self) -> int:
        """The form's."""
        return self.form.context_tokens

    @property
    def stops(self) -> Stops:
        """The form's."""
        return self.form.stops

    @property
    def sampling(self) -> SamplingParams | None:
        """The form's."""
        return self.form.sampling

    @property
    def remark(self) -> str:
        """The form's."""
        return self.form.remark

    def encode(self, fixture: Fixture) -> tuple[int, ...] | None:
        """By the form, each time: it takes no time."""
        return self.form.encode(fixture)

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """As the form gave them the first time."""
        key = tuple(ids)
        if (kept := self._logits.get(key)) is not None:
            return kept
        logits = self.form.logits(ids)
        if self._bytes + logits.nbytes <= MOST_BYTES:
            self._bytes += logits.nbytes
            self._logits[key] = logits
        return logits

    def continue_greedily(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[int, ...]]:
        """Those prompts that were not continued before, in one batch."""
        keys = [(max_tokens, tuple(prompt)) for prompt in prompts]
        fresh = [key for key in dict.fromkeys(keys) if key not in self._continued]
        if fresh:
            answers = self.form.continue_greedily([prompt for _, prompt in fresh], max_tokens)
            self._continued.update(zip(fresh, answers, strict=True))
        return [self._continued[key] for key in keys]

    def close(self) -> None:
        """Forget, and give back what the form holds."""
        self._logits.clear()
        self.form.close()
