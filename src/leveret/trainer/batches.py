"""What one forward pass sees (Batch), and where the batches of step k come from (BatchSource).

Step k takes rows k * R ... k * R + R - 1 of one fixed, seeded order (R = rows_per_step; `data.mixture` computes the
row at any place of that order directly). There is no iterator to wind forward and no buffer to save: a resumed run
needs the step number and nothing else, and gets exactly the rows it would have had.

Several processes share a step: each takes a run of neighboring rows, none twice, none left out, and counts differ by
one at most. All have equally many micro-batches, for they meet in each; where a process has a row less, its last one
may be a batch that trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from leveret.kernels.cross_entropy import IGNORED
from leveret.trainer.config import TrainingConfig

if TYPE_CHECKING:
    from leveret.data.packing import Row


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch. B rows of T tokens."""

    input_ids: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64: the id to predict at each position, -100 where none."""
    positions: Tensor
    """(B, T) int64, restarting with every document."""
    document_ids: Tensor
    """(B, T) int64: attention stays within one; -1 is padding."""
    keys: tuple[str, ...]
    """(B,) the rows' names, for error messages and forensics."""
    trained_tokens: int
    """Positions with a target."""
    weights: Tensor | None = None
    """(B, T) float32: how much each target counts. None: 1 each."""

    @property
    def total_weight(self) -> float:
        """What the summed loss is divided by: the trained tokens, or the sum of their weights."""
        if self.weights is None:
            return float(self.trained_tokens)
        return float(self.weights[self.targets != IGNORED].sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device` (itself when it is there already)."""
        if self.input_ids.device == device:
            return self
        names = ("input_ids", "targets", "positions", "document_ids", "weights")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{name: t.to(device) for name, t in tensors.items() if t is not None})


class RowOrder(Protocol):
    """A fixed order over rows, computed at any place: what `data.mixture.Mixture` is."""

    def row(self, place: int) -> Row:
        """The row at `place`, counted from 0 and without end."""

    def key(self, place: int) -> str:
        """A name a person can find that row by."""


class BatchSource:
    """The micro-batches of every step of a run.

    token_weights: (V,) float32, how much each id counts as a target; None: 1 each.
    """

    def __init__(
        self, order: RowOrder, config: TrainingConfig, *, rows_in_one_epoch: int, token_weights: Tensor | None = None
    ) -> None:
        self.order = order
        self.token_weights = token_weights
        self.rows_per_step = config.rows_per_step
        self.micro_batch_rows = config.micro_batch_rows
        self.total_rows = config.total_rows(rows_in_one_epoch)
        self.total_steps = config.total_steps(rows_in_one_epoch)

    def places(self, step: int, *, rank: int = 0, num_ranks: int = 1) -> range:
        """The places of `step` in the order of rows; with several processes, those of one of them."""
        first = step * self.rows_per_step
        places = range(first, min(first + self.rows_per_step, self.total_rows))
        return places[len(places) * rank // num_ranks : len(places) * (rank + 1) // num_ranks]

    def step(self, step: int, *, rank: int = 0, num_ranks: int = 1) -> list[Batch]:
        """The micro-batches of `step`, or one process' share of them; the last step of a run may have fewer rows."""
        places, size = self.places(step, rank=rank, num_ranks=num_ranks), self.micro_batch_rows
        batches = [self._batch(places[i : i + size]) for i in range(0, len(places), size)]
        most_rows = -(-len(self.places(step)) // num_ranks)
        missing = -(-most_rows // size) - len(batches)
        return batches + [nothing_like(self._batch(self.places(step)[:1])) for _ in range(missing)]

    def _batch(self, places: Sequence[int]) -> Batch:
        rows = [self.order.row(place) for place in places]
        return batch_of(rows, [self.order.key(place) for place in places], token_weights=self.token_weights)


def nothing_like(batch: Batch) -> Batch:
    """A batch of the same shapes that trains nothing and has no rows of its own."""
    return replace(batch, targets=torch.full_like(batch.targets, IGNORED), keys=(), trained_tokens=0, weights=None)


def batch_of(rows: Sequence[Row], keys: Sequence[str], *, token_weights: Tensor | None = None) -> Batch:
    """Stack rows of equal length into a Batch."""

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(row, name) for row in rows]).astype(np.int64))

    targets = stack("targets")
    return Batch(
        input_ids=stack("input_ids"),
        targets=targets,
        positions=stack("positions"),
        document_ids=stack("document_ids"),
        keys=tuple(keys),
        trained_tokens=int((targets != IGNORED).sum()),
        weights=_weights(rows, targets, token_weights),
    )


def _weights(rows: Sequence[Row], targets: Tensor, token_weights: Tensor | None) -> Tensor | None:
    """How much each target counts: by what it is, times by where it stands; None if all count 1."""
    of_ids = None if token_weights is None else token_weights[targets.clamp(min=0)]
    if all(row.weights is None for row in rows):
        return of_ids
    ones = np.ones(targets.shape[1], np.float32)
    of_places = torch.from_numpy(np.stack([ones if row.weights is None else row.weights for row in rows]))
    return of_places if of_ids is None else of_ids * of_places
