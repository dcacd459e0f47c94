"""GPTQ: round a matrix column by column, and let the columns that are still whole make up for what was lost.

What counts is not the weight but the product, so the error of a row w of the weight, rounded to q, is measured on the
inputs X that calibration text brings:

    |(w - q) X|^2 = (w - q) H (w - q)^T        H = X X^T  (inputs x inputs; `hessian.py`)

Round one column i, and the best change of the columns not rounded yet is known in closed form (Optimal Brain Surgeon):

    w_j <- w_j - (w_i - q_i) / [F^-1]_ii * [F^-1]_ij        F: H without the rows and columns already rounded

The paper's finding (2210.17323) is that all rows may take the same order of columns, and that every [F^-1] that is
needed stands in one upper triangle U with U^T U = H^-1:  w_j <- w_j - (w_i - q_i) / U_ii * U_ij.

Here the weight lies transposed, so that a column is contiguous; a column takes the corrections of its block when its
turn comes (one small product that reads them) instead of every column writing to all later ones; matrices that share
their inputs (q, k and v; gate and up) are solved side by side, with one factorization. Before the factorization a
share of H's mean diagonal is added to it (`damp`); an input that was always zero counts as if it were alone.

Columns with large inputs come first, while there are many left to make up for them. With `desc_act` groups are formed
in that order too, and the file must say which column is in which; else whole groups are ordered by the mean of their
inputs' squares, and columns within each, so that groups stay as they lie.

Scales of a group are chosen when its first column is reached, from the weights as they are then, with each column
weighted by 1 / U_ii^2: what its error will cost after the rest has made up for it.

Shape legend: O outputs, I inputs, G groups, S columns a group, B columns a block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leveret.errors import WeightsError
from leveret.kernels.int_matmul import GroupedIntegers
from leveret.precision.rounding import check_group_size, choose_grid
from leveret.quantize.walk import Share

BLOCK_COLUMNS = 128
"""Columns after which all later ones take the corrections in one product; it changes nothing but the time."""

MOST_DAMP = 1.0
"""The factorization is tried with ten times the damping, up to this, before it is given up."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GptqSettings:
    """How a matrix is rounded."""

    bits: int
    group_size: int | None
    """Columns that share a scale; None: all."""
    symmetric: bool
    search: bool
    """Try smaller scales for each group, or take the one that reaches every weight."""
    descending: bool
    """Groups are of columns in order of their activations, largest first (`desc_act`), not as they lie."""
    damp: float
    """Share of the mean of H's diagonal that is added to it."""


def solve_gptq(weight: Tensor, hessian: Tensor, settings: GptqSettings) -> GroupedIntegers:
    """Round a weight (O, I), or several over each other, whose inputs have H (I, I); both are left as they are.

    WeightsError when a number is not finite, or H cannot be factorized whatever the damping.
    """
    outputs, inputs = weight.shape
    size = check_group_size(inputs, settings.group_size)
    for what, numbers in (("weights", weight), ("inputs", hessian)):
        if not bool(torch.isfinite(numbers).all()):
            raise WeightsError(f"some {what} are not finite: GPTQ cannot round it")
    order = _order(hessian, size, descending=settings.descending)
    upper = _inverse_factor(hessian, order, settings.damp)
    work = weight.detach().T.float()[order].contiguous()  # (I, O)
    levels = torch.empty((inputs, outputs), dtype=torch.uint8)
    scales, zeros = torch.empty(inputs // size, outputs), torch.empty(inputs // size, outputs)
    for start, end in _blocks(inputs, size):
        lost = _round_block(work, upper, (start, end), size, settings, (levels, scales, zeros))
        if end < inputs:
            work[end:].addmm_(upper[start:end, end:].T, lost, alpha=-1)
    back = torch.argsort(order)
    if settings.descending:
        group_of_input = back // size
    else:
        group_of_input = torch.arange(inputs) // size
        groups = torch.argsort(order[::size] // size)
        scales, zeros = scales[groups], zeros[groups]
    return GroupedIntegers(
        levels_OI=levels[back].T.contiguous(),
        scales_GO=scales.to(torch.float16),
        zeros_GO=zeros.to(torch.int32),
        group_of_input=group_of_input.to(torch.int32),
        bits=settings.bits,
    )


class Gptq:
    """GPTQ's way of rounding, for `calibrated.py`."""

    name = "gptq"

    def __init__(self, settings: GptqSettings) -> None:
        self.settings = settings

    def balance(self, share: Share) -> None:
        """Nothing moves."""

    def round(self, weights: Sequence[Tensor], hessian: Tensor) -> list[GroupedIntegers]:
        """Solve all weights that take the same inputs at once."""
        solved = solve_gptq(torch.cat([weight.detach() for weight in weights]), hessian, self.settings)
        return split_outputs(solved, [len(weight) for weight in weights])


def split_outputs(weight: GroupedIntegers, outputs: list[int]) -> list[GroupedIntegers]:
    """The matrices that were solved over each other, by their numbers of outputs."""
    parts = zip(
        torch.split(weight.levels_OI, outputs), torch.split(weight.scales_GO, outputs, 1),
        torch.split(weight.zeros_GO, outputs, 1), strict=True,
    )  # fmt: skip
    return [
        GroupedIntegers(
            levels_OI=levels.contiguous(),
            scales_GO=scales.contiguous(),
            zeros_GO=zeros.contiguous(),
            group_of_input=weight.group_of_input.clone(),  # a file holds no tensor twice
            bits=weight.bits,
        )
        for levels, scales, zeros in parts
    ]


def _round_block(
    work: Tensor,
    upper: Tensor,
    span: tuple[int, int],
    size: int,
    settings: GptqSettings,
    out: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Round the columns of a block into `out`; returns (B, O), the error of each over its U_ii."""
    start, end = span
    levels, scales, zeros = out
    block, triangle = work[start:end], upper[start:end, start:end]
    lost = torch.empty_like(block)
    top = 2**settings.bits - 1
    for column in range(end - start):
        earlier = lost[:column]
        if (start + column) % size == 0:
            group = (start + column) // size
            ahead = _group_ahead(work, upper, start, column, size, earlier)
            scales[group], zeros[group] = _grid_of(ahead, upper, start + column, settings)
        scale, zero = scales[(start + column) // size], zeros[(start + column) // size]
        now = torch.addmv(block[column], earlier.T, triangle[:column, column], alpha=-1)
        level = now.div(scale).round_().add_(zero).clamp_(0, top)
        levels[start + column] = level
        torch.sub(now, level.sub_(zero).mul_(scale), out=lost[column])
        lost[column].div_(triangle[column, column])
    return lost


def _group_ahead(work: Tensor, upper: Tensor, start: int, column: int, size: int, earlier: Tensor) -> Tensor:
    """The group (S, O) that begins at `column` of the block at `start`, with all corrections known by now."""
    first = start + column
    group = work[first : first + size]
    if column == 0:
        return group
    return torch.addmm(group, upper[start:first, first : first + size].T, earlier, alpha=-1)


def _grid_of(group: Tensor, upper: Tensor, first: int, settings: GptqSettings) -> tuple[Tensor, Tensor]:
    """Scales and zero points (O,) of a group (S, O)."""
    importance = upper.diagonal()[first : first + len(group)].square().reciprocal()
    scale, zero = choose_grid(
        group.T.unsqueeze(1), bits=settings.bits, symmetric=settings.symmetric, search=settings.search,
        importance=importance,
    )  # fmt: skip
    return scale.flatten(), zero.flatten()


def _order(hessian: Tensor, size: int, *, descending: bool) -> Tensor:
    """Columns in the order in which they are rounded; whole groups of `size` stay together unless `descending`."""
    squares = hessian.diagonal()
    if descending:
        return torch.argsort(squares, descending=True, stable=True)
    within = torch.argsort(squares.view(-1, size), dim=1, descending=True, stable=True)  # (G, S)
    groups = torch.argsort(squares.view(-1, size).mean(dim=1), descending=True, stable=True)
    return (groups.unsqueeze(1) * size + within[groups]).flatten()


def _inverse_factor(hessian: Tensor, order: Tensor, damp: float) -> Tensor:
    """U (I, I), upper, with U^T U = (H + damping)^-1, for the columns in this order."""
    ordered = hessian.float()[order][:, order]
    diagonal = ordered.diagonal()
    mean = float(diagonal.mean()) or 1.0
    diagonal[diagonal == 0] = mean  # an input that was always zero
    while damp <= MOST_DAMP:
        damped = ordered.clone()
        damped.diagonal().add_(damp * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        logger.warning("H has no Cholesky factor with damp %g: trying %g", damp, 10 * damp)
        damp *= 10
    raise WeightsError("the inputs of calibration are too much alike: H has no Cholesky factor, whatever the damping")


def _blocks(inputs: int, size: int) -> Iterator[tuple[int, int]]:
    """First and last column of each block: whole groups, or parts of one group."""
    if size <= BLOCK_COLUMNS:
        step = size * (BLOCK_COLUMNS // size)
        yield from ((start, min(start + step, inputs)) for start in range(0, inputs, step))
        return
    for group in range(0, inputs, size):
        yield from (
            (start, min(start + BLOCK_COLUMNS, group + size)) for start in range(group, group + size, BLOCK_COLUMNS)
        )
