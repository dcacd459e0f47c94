"""The runner: feeds ids of many sequences to the model in one forward, and gives back the logits that are wanted.

Rows that take one token or a few go through the compiled step (compiled_step.py) together, where the model has one;
pieces of prompts go through the model's modules, all in one row without padding (model/paged_cache.py). A step with
both kinds reads the weights twice. A processor without a compiled step does it once: there everything is one forward.
(On a CPU the reading of the weights is a few hundredths of what a piece of 512 tokens costs.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leveret.engine.compiled_step import CompiledStep
from leveret.model.decoder import Decoder
from leveret.model.paged_cache import Feed, PagedCache, PagedRows

MOST_COMPILED_TOKENS = 16
"""New tokens of one sequence up to which the compiled step takes it."""

MOST_UNWANTED_TOKENS = 32
"""Of all sequences together: the compiled step computes logits after every token, wanted or not."""


class Runner:
    """A model and the memory of its KV cache."""

    def __init__(self, model: Decoder, *, num_blocks: int, block_tokens: int) -> None:
        weight = model.embed_tokens.weight
        self.cache = PagedCache(model.config, num_blocks, block_tokens, weight.dtype, weight.device)
        self._model = model
        self._compiled_step = CompiledStep.of(model)

    @property
    def compiled(self) -> bool:
        """Whether the model has a compiled step."""
        return self._compiled_step is not None

    def __call__(self, feeds: Sequence[Feed], wanted: Sequence[int]) -> Tensor:
        """Feed all; the logits after the last `wanted` ids of each feed, one behind the other, (sum of wanted, V)."""
        few = self._few(feeds, wanted)
        if len(few) == len(feeds):
            return self.by_compiled_step(feeds, wanted)
        many = sorted(set(range(len(feeds))) - set(few), key=lambda index: len(feeds[index].ids))
        found: dict[int, Tensor] = {}
        for indices, forward in ((few, self.by_compiled_step), (many, self.by_modules)):
            if indices:
                logits = forward([feeds[index] for index in indices], [wanted[index] for index in indices])
                parts = torch.split(logits, [wanted[index] for index in indices])
                found.update(zip(indices, parts, strict=True))
        return torch.cat([found[index] for index in range(len(feeds))])

    def _few(self, feeds: Sequence[Feed], wanted: Sequence[int]) -> list[int]:
        """Which feeds the compiled step takes: all tokens to be answered, and the ends of a few prompts."""
        if self._compiled_step is None:
            return []
        short = [index for index, feed in enumerate(feeds) if len(feed.ids) <= MOST_COMPILED_TOKENS]
        unwanted = sum(len(feeds[index].ids) - wanted[index] for index in short)
        if unwanted <= MOST_UNWANTED_TOKENS:
            return short
        return [index for index in short if wanted[index] == len(feeds[index].ids)]

    def by_compiled_step(self, feeds: Sequence[Feed], wanted: Sequence[int]) -> Tensor:
        """Feed all by the compiled step; the wanted logits.

        Guessed ids, and all of a sequence that is alone, get the bits of ids fed one by one.
        """
        assert self._compiled_step is not None
        as_alone = len(feeds) == 1 or any(count > 1 for count in wanted)
        logits = self._compiled_step(PagedRows(self.cache, feeds), as_alone=as_alone)
        return logits if logits.shape[0] == sum(wanted) else logits[_places(feeds, wanted)]

    def by_modules(self, feeds: Sequence[Feed], wanted: Sequence[int]) -> Tensor:
        """Feed all in one forward of the model; the wanted logits."""
        rows = PagedRows(self.cache, feeds)
        hidden = self._model.hidden(rows.ids, cache=rows)[0]  # (T, H)
        logits: Tensor = self._model.lm_head(hidden[_places(feeds, wanted)])
        return logits


def _places(feeds: Sequence[Feed], wanted: Sequence[int]) -> list[int]:
    """Where the last `wanted` ids of each feed stand among all new tokens."""
    places: list[int] = []
    end = 0
    for feed, count in zip(feeds, wanted, strict=True):
        end += len(feed.ids)
        places += range(end - count, end)
    return places


def fingerprint(model: Decoder) -> tuple[object, ...]:
    """What changes when a model does: its modules, hooks, mode and weights. Cheap; it does not read the weights.

    An optimizer's step and every other operation in place on a parameter count; what is written through `.data` or from
    outside PyTorch does not.
    """
    modules = tuple((id(each), len(each._forward_hooks) + len(each._forward_pre_hooks)) for each in model.modules())
    tensors = tuple((each.data_ptr(), _version(each), each.dtype) for each in (*model.parameters(), *model.buffers()))
    return model.training, modules, tensors


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
