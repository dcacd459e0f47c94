"""Matrices: are two forms that are rounded to 16 bits made of the same weights?

Where all is in float32 one wrong weight shows in the logits. Where a side is rounded to 16 bits it hides in what the
rounding does to them, though the rounding itself is small: 0.2 % of a number. So each row of each matrix is compared,
|b - a| / |a|, and each number of a norm. Forms whose weights lie otherwise (an adapter beside its model, quantized
matrices) are compared by what they answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from leveret.certify.findings import Check, verdict
from leveret.certify.form import Form
from leveret.certify.rows import LEAST_LENGTH, ROWS_AT_ONCE
from leveret.model.decoder import Decoder


@torch.no_grad()
def compare_matrices(first: Form, second: Form, bound: float) -> tuple[Check, ...]:
    """The check of all weights behind the embedding; none where two forms do not have the same ones."""
    if not (isinstance(first.model, Decoder) and isinstance(second.model, Decoder)):
        return ()
    ours, theirs = _weights(first.model), _weights(second.model)
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        return ()
    largest, place, beyond = 0.0, "", 0
    for name, value in ours.items():
        for row, errors in _errors(value, theirs[name]):
            beyond += int((~(errors <= bound)).sum())  # also true of NaN
            worst = int(errors.argmax())
            if not float(errors[worst]) <= largest:
                largest, place = float(errors[worst]), f", of row {row + worst} of {name}"
    measured = f"largest relative difference {largest:.2g}{place}"
    measured += f"; {beyond:,} rows differ by more than {bound:g}" if beyond else ""
    return (Check(name="matrices", measured=measured, bound=f"{bound:g}", verdict=verdict(not beyond)),)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """All that a model multiplies with, quantized matrices and adapters too, which make its names others."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("embed_tokens.")}


def _errors(ours: Tensor, theirs: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The number of a row, and the errors of the rows from there on; infinite where one is no number."""
    rows = ours.reshape(len(ours), -1)
    longest = float(max((part.float().norm(dim=-1).max() for part in torch.split(rows, ROWS_AT_ONCE)), default=0.0))
    least = max(longest * LEAST_LENGTH, torch.finfo().tiny)
    for start, part in zip(range(0, len(rows), ROWS_AT_ONCE), torch.split(rows, ROWS_AT_ONCE), strict=True):
        other = theirs.reshape(len(rows), -1)[start : start + len(part)]
        apart = (other.float() - part.float()).norm(dim=-1) / part.float().norm(dim=-1).clamp(min=least)
        yield start, apart.nan_to_num(nan=torch.inf)
