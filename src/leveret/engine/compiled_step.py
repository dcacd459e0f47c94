"""The next tokens of a model, or of several that share their weights, computed by one compiled call.

Between two tokens of a small model Python would start a few hundred operations of a few microseconds each. The compiled
step (kernels/decode_step.py) reads the same weights and the same cache; which models it takes is said in step_parts.py.
For the rest `Decoder.hidden` stays, which is also the step's twin.

Models that differ in their adapters only have one step: rows for different ones are computed together, and the weights
are read once for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.engine.step_parts import KnownWeights, Refused, StepParts, joined, parts_of
from leveret.kernels.decode_step import DecodeStep
from leveret.model.decoder import Decoder
from leveret.model.paged_cache import PagedRows

logger = logging.getLogger(__name__)


class CompiledStep:
    """The compiled step of models by their numbers, which are those of `Feed.model`."""

    def __init__(self, models: Mapping[int, Decoder], parts: StepParts) -> None:
        """parts: those of all models, joined in their order."""
        self._models = dict(models)
        self._places = {number: place for place, number in enumerate(models)}
        self._model = next(iter(self._models.values()))
        self._step = DecodeStep(parts.shape, parts.layers, last_norm=parts.last_norm, head=parts.head)
        self._angles: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, model: Decoder) -> Self | None:
        """The step for a model as it is now; None, with the reason in the log, when it must go through its modules."""
        return cls.of_all({0: model}, KnownWeights()).get(0)

    @classmethod
    def of_all(cls, models: Mapping[int, Decoder], known: KnownWeights) -> dict[int, Self]:
        """The step of each model that has one; those that share their weights share it."""
        groups: list[tuple[dict[int, Decoder], StepParts]] = []
        for number, model in models.items():
            try:
                parts = parts_of(model, known)
            except Refused as refusal:
                logger.info("each token goes through the model's modules: %s", refusal)
                continue
            for place, (members, theirs) in enumerate(groups):
                if (together := joined(theirs, parts)) is not None:
                    groups[place] = ({**members, number: model}, together)
                    break
            else:
                groups.append(({number: model}, parts))
        made = [cls(members, parts) for members, parts in groups]
        return {number: step for step in made for number in step._models}

    def __call__(self, rows: PagedRows, *, as_alone: bool = False) -> Tensor:
        """Feed the new tokens, T in all, which the cache then holds -> the logits after each, (T, V).

        as_alone: the bits of each token fed in a call of its own.
        """
        cos, signed_sin = self._turns(rows)
        cache = rows.cache
        positions, places = rows.positions[0].tolist(), [self._places[number] for number in rows.models]
        return self._step(
            self._embedded(rows), cache.keys, cache.values, rows.tables(), positions, cos, signed_sin,
            models=places, as_alone=as_alone,
        )  # fmt: skip

    def _embedded(self, rows: PagedRows) -> Tensor:
        """The embeddings of the new tokens, (T, H), each looked up in the table of its model."""
        tables = {number: self._models[number].embed_tokens.weight for number in set(rows.models)}
        ids = rows.ids[0]
        if len({table.data_ptr() for table in tables.values()}) == 1:
            return F.embedding(ids, next(iter(tables.values())))
        return torch.stack([tables[number][token] for number, token in zip(rows.models, ids, strict=True)])

    def _turns(self, rows: PagedRows) -> tuple[Tensor, Tensor]:
        """cos and signed sin of each new token, (T, D), looked up: a tiny model spent a tenth of a token on them."""
        if self._model.config.rope.kind == "dynamic":  # angles of a sequence follow its length
            angles = self._model.rope(rows.positions, rows.planned_lengths, torch.bfloat16)
            cos, signed_sin = (each.reshape(rows.num_tokens, -1).contiguous() for each in angles)
            return cos, signed_sin
        positions = rows.positions[0]
        needed = int(positions.max()) + 1
        if self._angles is None or len(self._angles[0]) < needed:
            along = torch.arange(2 * needed).unsqueeze(0)
            cos, signed_sin = self._model.rope(along, None, torch.bfloat16)
            self._angles = (cos[0, 0].contiguous(), signed_sin[0, 0].contiguous())
        return F.embedding(positions, self._angles[0]), F.embedding(positions, self._angles[1])
