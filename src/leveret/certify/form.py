"""What every form of a model can do, whoever reads it: ids from text, logits from ids, greedy text from ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import nn

from leveret.certify.thresholds import Numerics
from leveret.certify.zoo import Fixture
from leveret.engine.request import SamplingParams
from leveret.errors import ConfigError
from leveret.tokenizer.files import Tokenizer

Reader = Literal["leveret", "checkpoint", "transformers", "peft", "llama.cpp", "server"]

OURS: tuple[Reader, ...] = ("leveret", "checkpoint")
"""Readers that keep user text apart from special tokens, and refuse what a template would silently drop."""


@dataclass(frozen=True, kw_only=True)
class Stops:
    """The ids at which a form ends a reply."""

    declared: frozenset[int]
    """Those that the model's files name."""
    implied: frozenset[int] = frozenset()
    """Those that its reader adds by itself: of the template, of the tokenizer, or by the look of a token."""


NO_ID = -1
"""What a form writes whose values are infinite or no numbers: it differs from everything that is written."""


class Form(Protocol):
    """One form of a model, loaded in the number format it is stored in, for that is what is certified."""

    @property
    def name(self) -> str:
        """The reference it was asked for by."""

    @property
    def reader(self) -> Reader:
        """What reads it."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def numerics(self) -> Numerics:
        """How it computes."""

    @property
    def model(self) -> nn.Module | None:
        """The PyTorch model, called with ids (B, T), to look into when it differs; None where there is none.

        Of a form that another program runs, it is what Leveret makes of the same file.
        """

    @property
    def own_tokenizer(self) -> Tokenizer:
        """Its tokenizer as Leveret reads it, to cut texts and to know its special tokens."""

    @property
    def context_tokens(self) -> int:
        """The longest sequence it is meant for."""

    @property
    def stops(self) -> Stops:
        """Where it ends a reply."""

    @property
    def sampling(self) -> SamplingParams | None:
        """How its files say that tokens are chosen; None of a form whose files cannot say it."""

    @property
    def remark(self) -> str:
        """What is to be known of its reader, in a sentence; mostly nothing."""

    def encode(self, fixture: Fixture) -> tuple[int, ...] | None:
        """Ids of a fixture; None when it has no template or its template refuses the conversation."""

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits (T, V) after each of T ids, in float32."""

    def continue_greedily(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[int, ...]]:
        """`max_tokens` ids after each prompt, whatever they are (no stop ids); NO_ID for values that are no numbers."""

    def close(self) -> None:
        """Give back what does not go by itself."""


def numerics_of(dtype: torch.dtype, bits: int | None) -> Numerics:
    """How a model of this dtype computes; ConfigError for one that cannot be certified."""
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"weights in {name} cannot be certified; float32, bfloat16 and float16 can")
    return Numerics(dtype=name, bits=bits)
