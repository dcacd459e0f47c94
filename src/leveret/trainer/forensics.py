"""What was in a step whose loss stood out: each row with its own loss, its text, and the files it came from.

    forensics/
      step-57.json    everything, for programs
      step-57.html    the rows with the highest losses and their texts, for people

The losses are those of the rows alone, by a forward pass over the weights as they were before the step's update (with
updates in backward: as these have left them), without dropout and without gradients. So the page tells bad data (one
row far above the others) from a model that has gone astray (all rows high). The keys on it are those that
`exclude_rows` takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from leveret.paths import atomic_write
from leveret.trainer.batches import Batch, nothing_like
from leveret.trainer.forensics_page import render_report
from leveret.trainer.step import Objective
from leveret.trainer.world import World

if TYPE_CHECKING:
    from leveret.tokenizer.files import Tokenizer

ROWS_WITH_TEXT = 24
"""The rows with the highest losses get their texts and origins; of the others only key and loss are kept."""
_EXCERPT_TOKENS = 160
_EXCERPT_CHARACTERS = 400

Origins = Callable[[Sequence[str]], Mapping[str, Sequence[str]]]
"""The keys of rows -> the keys of the documents in each, in order (`file:line`); rows not known are left out."""


@dataclass(frozen=True, kw_only=True)
class DocumentReport:
    """One document of a row."""

    key: str | None
    """Where it comes from; None when that is not known."""
    tokens: int
    text: str
    """Its beginning in the row."""


@dataclass(frozen=True, kw_only=True)
class RowReport:
    """One row of the step."""

    key: str
    loss: float
    """Mean over its trained tokens; NaN if it trains none."""
    trained_tokens: int
    documents: list[DocumentReport]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What is known of a step."""

    step: int
    """From 1, as in metrics.jsonl."""
    reason: str
    """"spike" or "non-finite"."""
    action: str
    """What the run does about it, for people."""
    facts: dict[str, Any]
    """Loss, what was typical, gradient norm, learning rate, as far as known."""
    rows: list[RowReport]
    """The highest loss first."""
    measured: str = "before the update"
    """When the losses of the rows were, or on which weights."""


class Forensics:
    """Writes the reports of one run."""

    def __init__(
        self, folder: Path, model: nn.Module, objective: Objective, *,
        tokenizer: Tokenizer | None = None, origins: Origins | None = None, world: World | None = None,
        updates_in_backward: bool = False,
    ) -> None:  # fmt: skip
        self.world = world or World(torch.device("cpu"))
        self.folder = folder / "forensics"
        self.model, self.objective, self.tokenizer = model, objective, tokenizer
        self.measured = "on the weights as the step left them" if updates_in_backward else "before the update"
        self.origins = origins or (lambda keys: {key: key.split(" + ") for key in keys})

    def report(
        self, step: int, batches: Sequence[Batch], *, reason: str, action: str, facts: dict[str, Any]
    ) -> tuple[StepReport, Path]:
        """Look into `step` (from 0) and write it down; the report and the page.

        Several processes look into their own rows, together; all know the report, and the first one writes it.
        """
        own = [row for batch in batches for row in single_rows(batch)]
        missing = round(self.world.largest(len(own))) - len(own)  # all make as many forward passes
        looked_at = own + [nothing_like(batches[0])] * missing
        found = self.world.gather((own, row_losses(self.model, self.objective, looked_at)[: len(own)]))
        rows, losses = [row for part, _ in found for row in part], [loss for _, part in found for loss in part]
        ranked = sorted(zip(losses, rows, strict=True), key=_place)
        origins = self.origins([row.keys[0] for _, row in ranked[:ROWS_WITH_TEXT]])
        described = [
            RowReport(
                key=row.keys[0],
                loss=loss,
                trained_tokens=row.trained_tokens,
                documents=self._documents(row, origins) if place < ROWS_WITH_TEXT else [],
            )
            for place, (loss, row) in enumerate(ranked)
        ]
        report = StepReport(
            step=step + 1, reason=reason, action=action, facts=facts, rows=described, measured=self.measured
        )
        page = self.folder / f"step-{step + 1}.html"
        if not self.world.is_main:
            return report, page
        text = json.dumps(_finite(asdict(report)), ensure_ascii=False, indent=1, allow_nan=False)
        atomic_write(page.with_suffix(".json"), text + "\n")
        atomic_write(page, render_report(report))
        return report, page

    def _documents(self, row: Batch, origins: Mapping[str, Sequence[str]]) -> list[DocumentReport]:
        ids, documents = row.input_ids[0].tolist(), row.document_ids[0].tolist()
        found = sorted({document for document in documents if document >= 0})
        keys: Sequence[str | None] = origins.get(row.keys[0], [])
        keys = keys if len(keys) == len(found) else [None] * len(found)
        reports = []
        for key, document in zip(keys, found, strict=True):
            part = [token for token, owner in zip(ids, documents, strict=True) if owner == document]
            reports.append(DocumentReport(key=key, tokens=len(part), text=self._excerpt(part)))
        return reports

    def _excerpt(self, ids: list[int]) -> str:
        shown = ids[:_EXCERPT_TOKENS]
        if self.tokenizer is None:
            return " ".join(map(str, shown))
        text = self.tokenizer.decode(shown)
        cut = len(ids) > len(shown) or len(text) > _EXCERPT_CHARACTERS
        return text[:_EXCERPT_CHARACTERS] + (" …" if cut else "")


@torch.no_grad()
def row_losses(model: nn.Module, objective: Objective, rows: Sequence[Batch]) -> list[float]:
    """The mean loss of each row's trained tokens, with the model in evaluation mode; then as it was."""
    was_training = model.training
    model.eval()
    try:
        sums = [(objective(row), row.total_weight) for row in rows]
    finally:
        model.train(was_training)
    return [float(loss) / weight if weight else math.nan for loss, weight in sums]


def _place(found: tuple[float, Batch]) -> tuple[int, float]:
    """Where a row stands in the report: no number first, then the highest loss; last what trains nothing."""
    loss, row = found
    if not row.trained_tokens:
        return 2, 0.0
    return (1, -loss) if math.isfinite(loss) else (0, 0.0)


def single_rows(batch: Batch) -> list[Batch]:
    """A batch of B rows as B batches of one; a batch without keys has no rows of its own."""
    names = ("input_ids", "targets", "positions", "document_ids", "weights")
    rows = []
    for place, key in enumerate(batch.keys):
        parts = {name: getattr(batch, name)[place : place + 1] for name in names if getattr(batch, name) is not None}
        rows.append(replace(batch, keys=(key,), trained_tokens=int((parts["targets"] >= 0).sum()), **parts))
    return rows


def _finite(value: Any) -> Any:
    """With null for every number that JSON has no form for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
