"""The runner: feeds ids of many sequences to the model in one forward, and gives back the logits that are wanted.

Rows that take one token or a few go through the compiled step (compiled_step.py) together, where the model has one;
pieces of prompts go through the model's modules, all in one row without padding (model/paged_cache.py). A step with
both kinds reads the weights twice. A processor without a compiled step does it once: there everything is one forward.
(On a CPU the reading of the weights is a few hundredths of what a piece of 512 tokens costs.)

Several models of one shape may share the cache, mostly one under different adapters. Pieces of prompts go through the
modules of their model, one model after the other; single tokens of models that share their weights go together.

On a GPU, where each sequence brings one token, the modules' launches are recorded and replayed (graphs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from leveret.engine.compiled_step import CompiledStep
from leveret.engine.graphs import Capture, DecodeGraphs
from leveret.engine.step_parts import KnownWeights
from leveret.model.decoder import Decoder
from leveret.model.paged_cache import Feed, PagedCache, PagedRows

MOST_COMPILED_TOKENS = 16
"""New tokens of one sequence up to which the compiled step takes it."""

MOST_UNWANTED_TOKENS = 32
"""Of all sequences together: the compiled step computes logits after every token, wanted or not."""


class Runner:
    """Models by their numbers, and the memory of their KV cache."""

    def __init__(
        self,
        models: Mapping[int, Decoder],
        *,
        num_blocks: int,
        block_tokens: int,
        capture: Capture | None = None,
    ) -> None:
        """The cache is for models like the first one. capture: for graphs of single tokens, if there are to be any."""
        first = next(iter(models.values()))
        weight, graphed = first.embed_tokens.weight, capture is not None
        self.cache = PagedCache(first.config, num_blocks + graphed, block_tokens, weight.dtype, weight.device)
        self._graphs = None if capture is None else DecodeGraphs(self.cache, capture, spare=num_blocks + 1)
        self._models: dict[int, Decoder] = {}
        self._known = KnownWeights()
        self.serve(models)

    def serve(self, models: Mapping[int, Decoder]) -> None:
        """From now on feed these models; those that it has already are as they were."""
        if self._models.keys() - models.keys():
            self._known = KnownWeights()  # nothing of a model that is gone is held
        self._models = dict(models)
        self._steps = CompiledStep.of_all(self._models, self._known)
        if self._graphs is not None:
            self._graphs.serve(self._models)

    def step_of(self, model: int) -> CompiledStep | None:
        """The compiled step of a model, which others may share; None: it has none."""
        return self._steps.get(model)

    def __call__(self, feeds: Sequence[Feed], wanted: Sequence[int]) -> Tensor:
        """Feed all; the logits after the last `wanted` ids of each feed, one behind the other, (sum of wanted, V)."""
        few = self._few(feeds, wanted)
        if len(few) == len(feeds):
            return self.by_compiled_step(feeds, wanted)
        many = sorted(set(range(len(feeds))) - set(few), key=lambda index: len(feeds[index].ids))
        parts = [(few, self.by_compiled_step), (many, self.by_modules)]
        return _in_parts([part for part in parts if part[0]], feeds, wanted)

    def _few(self, feeds: Sequence[Feed], wanted: Sequence[int]) -> list[int]:
        """Which feeds the compiled step takes: all tokens to be answered, and the ends of a few prompts."""
        able = [index for index, feed in enumerate(feeds) if feed.model in self._steps]
        short = [index for index in able if len(feeds[index].ids) <= MOST_COMPILED_TOKENS]
        unwanted = sum(len(feeds[index].ids) - wanted[index] for index in short)
        if unwanted <= MOST_UNWANTED_TOKENS:
            return short
        return [index for index in short if wanted[index] == len(feeds[index].ids)]

    def by_compiled_step(self, feeds: Sequence[Feed], wanted: Sequence[int]) -> Tensor:
        """Feed all by the compiled steps of their models; the wanted logits.

        Guessed ids, and all of a sequence that is alone, get the bits of ids fed one by one.
        """
        groups = _grouped(feeds, lambda feed: id(self._steps[feed.model]))
        if len(groups) > 1:
            return _in_parts([(group, self.by_compiled_step) for group in groups], feeds, wanted)
        as_alone = len(feeds) == 1 or any(count > 1 for count in wanted)
        logits = self._steps[feeds[0].model](PagedRows(self.cache, feeds), as_alone=as_alone)
        return logits if logits.shape[0] == sum(wanted) else logits[_places(feeds, wanted)]

    def by_modules(self, feeds: Sequence[Feed], wanted: Sequence[int]) -> Tensor:
        """Feed all in one forward of each model; the wanted logits."""
        groups = _grouped(feeds, lambda feed: feed.model)
        if len(groups) > 1:
            return _in_parts([(group, self.by_modules) for group in groups], feeds, wanted)
        if self._graphs is not None and all(wanted):
            return self._graphs(feeds[0].model, feeds, lambda: self._in_one_forward(feeds, wanted))
        return self._in_one_forward(feeds, wanted)

    def _in_one_forward(self, feeds: Sequence[Feed], wanted: Sequence[int]) -> Tensor:
        rows, model = PagedRows(self.cache, feeds), self._models[feeds[0].model]
        hidden = model.hidden(rows.ids, cache=rows)[0]  # (T, H)
        logits: Tensor = model.lm_head(hidden[_places(feeds, wanted)])
        return logits


Forward = Callable[[Sequence[Feed], Sequence[int]], Tensor]


def _grouped(feeds: Sequence[Feed], key: Callable[[Feed], int]) -> list[list[int]]:
    """The places of feeds that have the same key, in the order in which the keys come."""
    groups: dict[int, list[int]] = {}
    for index, feed in enumerate(feeds):
        groups.setdefault(key(feed), []).append(index)
    return list(groups.values())


def _in_parts(parts: Sequence[tuple[Sequence[int], Forward]], feeds: Sequence[Feed], wanted: Sequence[int]) -> Tensor:
    """The wanted logits, where each forward takes the feeds of its places."""
    found: dict[int, Tensor] = {}
    for places, forward in parts:
        logits = forward([feeds[index] for index in places], [wanted[index] for index in places])
        pieces = torch.split(logits, [wanted[index] for index in places])
        found.update(zip(places, pieces, strict=True))
    return torch.cat([found[index] for index in range(len(feeds))])


def _places(feeds: Sequence[Feed], wanted: Sequence[int]) -> list[int]:
    """Where the last `wanted` ids of each feed stand among all new tokens."""
    places: list[int] = []
    end = 0
    for feed, count in zip(feeds, wanted, strict=True):
        end += len(feed.ids)
        places += range(end - count, end)
    return places
