"""Embedding rows: do two forms read every id of the vocabulary alike?

Texts hold a few hundred of the ids that a vocabulary has. The row of another one may be lost, moved or never trained,
and no logit of these texts shows it, as it shows a wrong row of the head. So the rows themselves are compared, of all
ids: |b - a| / |a| for each, which is 0 for equal rows, 1 for one that is gone, and about 1.4 for another token's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from leveret.certify.findings import Check, verdict
from leveret.certify.form import Form

TABLE = "embed_tokens"
ROWS_AT_ONCE = 4096
LEAST_LENGTH = 1e-3
"""A row shorter than this share of the longest counts as this long: rows of padding are nothing but rounding."""


@torch.no_grad()
def compare_rows(first: Form, second: Form, bound: float, vocab_size: int) -> Check:
    """The check of two forms whose logits have `vocab_size` ids; not compared where one of them shows no table."""
    tables = [_table(form.model) for form in (first, second)]
    if tables[0] is None or tables[1] is None:
        return Check(name="embedding rows", measured="one form does not show its embedding", bound="-",
                     verdict="not compared")  # fmt: skip
    pairs = zip(_rows(tables[0], vocab_size), _rows(tables[1], vocab_size), strict=True)
    sizes = torch.cat([torch.stack((ours.norm(dim=-1), (theirs - ours).norm(dim=-1))) for ours, theirs in pairs], dim=1)
    lengths, apart = sizes
    errors = apart / lengths.clamp(min=float(lengths.max()) * LEAST_LENGTH).clamp(min=torch.finfo().tiny)
    worst = int(errors.nan_to_num(nan=torch.inf).argmax())
    largest = float(errors[worst])
    named = f", of id {worst} {first.own_tokenizer.decode([worst])!r}" if largest else ""
    beyond = int((~(errors <= bound)).sum())  # also true of NaN
    return Check(
        name="embedding rows",
        measured=f"largest relative difference {largest:.2g}{named}, of {vocab_size:,} rows"
        + (f"; {beyond:,} differ by more than {bound:g}" if beyond else ""),
        bound=f"{bound:g}",
        verdict=verdict(not beyond),
    )


def _table(model: nn.Module | None) -> nn.Module | None:
    """The module that turns ids into rows, with what an adapter has put around it."""
    if model is None:
        return None
    return next((module for name, module in model.named_modules() if name.rpartition(".")[2] == TABLE), None)


def _rows(table: nn.Module, count: int) -> Iterator[Tensor]:
    """The rows of ids 0 to `count`, some at a time, in float32."""
    device = next(table.parameters()).device
    for start in range(0, count, ROWS_AT_ONCE):
        rows: Tensor = table(torch.arange(start, min(start + ROWS_AT_ONCE, count), device=device))
        yield rows.float().cpu()
