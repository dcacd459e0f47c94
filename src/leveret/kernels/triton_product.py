"""Products of few rows with 4- and 8-bit weights on a GPU, by Triton, which reads the integers as they are stored.

On a GPU the plain twin (`int_matmul.matmul_plain`) writes the whole matrix out for every product. That is little beside
the product of a long prompt and nearly everything beside that of one token. Up to MOST_ROWS rows the program in
`triton_few_rows.py` takes apart the words of the GPTQ layout in registers instead; more rows go on as before.

Nobody has run this on a GPU yet, so nothing here is said about its speed. What is known: Triton's interpreter gets the
twin's numbers, and the program compiles for GPUs of capability 8.0 and 9.0. So it is watched: the first product of each
`Kind` is compared with the twin's, by TOLERANCE, and when Triton fails, or differs, there is one warning and the twin
serves from then on. (An instance that reads outside its memory can still end the process: CUDA does not forgive that.)

LEVERET_NATIVE=off switches Triton off too, and nothing here imports it before a tensor on a GPU is multiplied.

Shape legend: M rows of activations, O outputs, I inputs, W words (of 8 or 4 inputs), G groups.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leveret.kernels.int_matmul import GroupedIntegers, matmul_plain
from leveret.kernels.native.library import VARIABLE

MOST_ROWS = 64
"""Up to so many rows Triton's program multiplies; they are what one instance holds."""

DTYPES = (torch.bfloat16, torch.float16)
"""Dtypes of activations that are multiplied so."""

TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Largest difference from the twin, in parts of its largest number: twice what one step of the last place can be."""

BLOCK_N = 64
"""Outputs of an instance."""

BLOCK_W = 16
"""Words of an output that are multiplied together: 16 is the least that Triton's product takes."""

INSTANCES = 256
"""Fewer are not enough for a large GPU, so the words of an output are shared by several, whose sums are then added."""

LEAST_BLOCKS = 4
"""Of BLOCK_W words for each instance, where an output's words are shared."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TritonWeight:
    """A weight in the GPTQ layout, as it lies in the file, and what the program must know of it."""

    words: Tensor
    """(W, O) int32: the levels of consecutive inputs, the first in the lowest bits."""
    zeros: Tensor
    """(G, O * bits / 32) int32: the zero points of consecutive outputs, less `zero_offset`."""
    scales: Tensor
    """(G, O) float16."""
    group_of_input: Tensor
    """(I,) int32."""
    bits: int
    zero_offset: int
    """What is added to stored zero points, modulo 2**bits."""
    span: int
    """Aligned runs of so many inputs are in one group: a block's, a word's, or 1."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What Triton compiles apart from the rest, so that one must be tried by itself."""

    bits: int
    dtype: torch.dtype
    device: torch.device
    span: int
    block_rows: int
    """16, 32 or 64."""
    shared: bool
    """Whether several instances share an output."""
    whole_lines: bool
    """Whether there is a multiple of 16 outputs, which makes addresses that are read at once."""


def triton_missing() -> str | None:
    """Why Triton is not used on any GPU of this process; None when it is."""
    if os.environ.get(VARIABLE) == "off":
        return f"{VARIABLE}=off"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return watch().failure


def triton_refusal(*, bits: int, in_features: int, out_features: int, device: torch.device) -> str | None:
    """Why Triton cannot multiply such a weight; None when it can."""
    if device.type != "cuda":
        return f"Triton multiplies on a GPU and the weight is on {device.type}"
    if (reason := triton_missing()) is not None:
        return reason
    per_word = 32 // bits
    if in_features % per_word or out_features % per_word:
        return (
            f"Triton's program takes multiples of {per_word} inputs and outputs, not {in_features} and {out_features}"
        )
    if in_features * out_features >= 2**31:
        return f"{in_features} times {out_features} weights are more than its addresses reach"
    return None


def prepare_words(
    words: Tensor, zeros: Tensor, scales: Tensor, group_of_input: Tensor, *, bits: int, zero_offset: int
) -> TritonWeight:
    """A weight from the stored tensors of the GPTQ layout, which are not copied; ask `triton_refusal` first."""
    per_word = 32 // bits
    spans = (per_word * BLOCK_W, per_word)
    return TritonWeight(
        words=words.contiguous(),
        zeros=zeros.contiguous(),
        scales=scales.contiguous(),
        group_of_input=group_of_input.contiguous(),
        bits=bits,
        zero_offset=zero_offset,
        span=next((span for span in spans if _in_runs(group_of_input, span)), 1),
    )


def multiply_triton(x: Tensor, weight: TritonWeight) -> Tensor:
    """`x @ weight.T` for at most MOST_ROWS rows of x (..., I) in one of DTYPES; returns (..., O) in the dtype of x.

    No gradient. Sums are in an order that depends on the shapes alone: the same rows give the same bits.
    """
    from leveret.kernels.triton_few_rows import few_rows

    rows = x.reshape(-1, x.shape[-1]).contiguous()  # (M, I)
    count, (num_words, outputs) = len(rows), weight.words.shape
    words_each, sharing = _shares(num_words, outputs)
    out = rows.new_empty((sharing, count, outputs), dtype=torch.float32 if sharing > 1 else x.dtype)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]  # Triton starts programs on the current device
        few_rows[(-(-outputs // BLOCK_N), sharing)](
            rows, weight.words, weight.zeros, weight.scales, weight.group_of_input, out,
            count, outputs, num_words, words_each,
            BITS=weight.bits, OFFSET=weight.zero_offset, SPAN=weight.span,
            BLOCK_M=_block_rows(count), BLOCK_N=BLOCK_N, BLOCK_W=BLOCK_W,
        )  # fmt: skip
    total = out[0] if sharing == 1 else out.sum(0).to(x.dtype)
    return total.reshape(*x.shape[:-1], outputs)


@dataclass(kw_only=True)
class Watch:
    """Whether Triton's products are trusted in this process, and the way to multiply that heeds it."""

    failure: str | None = None
    """What went wrong once; then the twin serves for all."""
    trusted: set[Kind] = field(default_factory=set)
    """Kinds whose first product was the twin's."""

    def multiply(self, x: Tensor, weight: TritonWeight, integers: Callable[[], GroupedIntegers]) -> Tensor:
        """As `multiply_triton`, or as the twin where Triton failed, now or before.

        integers: unpacks the weight, for the twin.
        """
        kind = kind_of(x, weight)
        if self.failure is None and (kind in self.trusted or self._proves(kind, x, weight, integers)):
            found = self._try(kind, x, weight)
            if found is not None:
                return found
        return matmul_plain(x, integers())

    @torch.no_grad()
    def _proves(self, kind: Kind, x: Tensor, weight: TritonWeight, integers: Callable[[], GroupedIntegers]) -> bool:
        """Compare the products of as many rows as x has, of fixed numbers."""
        rows = torch.arange(x.numel(), device=x.device, dtype=torch.float32).sin().reshape(x.shape).to(x.dtype)
        found = self._try(kind, rows, weight)
        if found is None:
            return False
        wanted = matmul_plain(rows, integers()).float()
        largest = float(wanted.abs().max())
        if not math.isfinite(largest):
            return False  # the fault of the file, or of a range that is too small: nothing can be compared
        error = float((found.float() - wanted).abs().max()) / max(largest, torch.finfo(x.dtype).tiny)
        if not error <= TOLERANCE[x.dtype]:  # NaN too
            self._distrust(kind, f"a product was off by {error:.2g} of its largest number")
            return False
        self.trusted.add(kind)
        return True

    def _try(self, kind: Kind, x: Tensor, weight: TritonWeight) -> Tensor | None:
        try:
            return multiply_triton(x, weight)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler, its tools and a driver have many ways to fail
            self._distrust(kind, f"{type(error).__name__}: {error}".strip())
            return None

    def _distrust(self, kind: Kind, what: str) -> None:
        if self.failure is None:
            self.failure = (
                f"Triton's int{kind.bits} product in {str(kind.dtype).removeprefix('torch.')} failed ({what})"
            )
            logger.warning(
                "%s; from now on quantized matrices on a GPU are written out for every product, which is right but "
                "slow. Please report this with the versions of torch and triton and the name of the GPU",
                self.failure,
            )


@functools.cache
def watch() -> Watch:
    """The one of this process."""
    return Watch()


def kind_of(x: Tensor, weight: TritonWeight) -> Kind:
    """What is compiled for such a product."""
    num_words, outputs = weight.words.shape
    return Kind(
        bits=weight.bits,
        dtype=x.dtype,
        device=x.device,
        span=weight.span,
        block_rows=_block_rows(x.numel() // x.shape[-1]),
        shared=_shares(num_words, outputs)[1] > 1,
        whole_lines=outputs % 16 == 0,
    )


def _block_rows(count: int) -> int:
    """The least power of two, from 16, that holds the rows."""
    assert 0 < count <= MOST_ROWS
    return max(16, 1 << (count - 1).bit_length())


def _shares(num_words: int, outputs: int) -> tuple[int, int]:
    """Words of an output for each instance, and how many instances share them."""
    blocks = -(-num_words // BLOCK_W)
    sharing = max(1, min(INSTANCES // -(-outputs // BLOCK_N), blocks // LEAST_BLOCKS))
    blocks_each = -(-blocks // sharing)
    return blocks_each * BLOCK_W, -(-blocks // blocks_each)


def _in_runs(group_of_input: Tensor, length: int) -> bool:
    """Whether all aligned runs of `length` inputs are in one group each; the last may be shorter."""
    whole = len(group_of_input) // length * length
    runs = group_of_input[:whole].view(-1, length)
    rest = group_of_input[whole:]
    return bool((runs == runs[:, :1]).all()) and bool((rest == rest[:1]).all())
