"""The likeliest id of each row of logits, the lowest of equals: what greedy decoding asks for after every token.

PyTorch looks for it in bfloat16 one number after the other, 20 ns each, which for many rows was a tenth of a step. The
compiled kernel looks at a register at once; `torch.max` is its twin, and what serves all other tensors. A model whose
values are infinite or no numbers makes nothing likely, and is told from one that does at no cost here.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leveret.kernels.native.library import native_for, pointer, size


def likeliest(logits: Tensor) -> list[int | None]:
    """(B, V) -> B ids; None for a row with a value that is no number, or larger than all numbers."""
    library = native_for(logits)
    if library is None or logits.ndim != 2 or logits.shape[1] == 0:
        return plain_likeliest(logits)
    found = torch.empty(logits.shape[0], dtype=torch.int64)
    library.leveret_likeliest(
        pointer(logits), size(logits.shape[0]), size(logits.shape[1]), pointer(found), torch.get_num_threads()
    )
    return [index if index >= 0 else None for index in found.tolist()]


def plain_likeliest(logits: Tensor) -> list[int | None]:
    """The same by PyTorch, to which what is no number is the largest."""
    largest, ids = logits.max(dim=-1)
    return [index if known else None for index, known in zip(ids.tolist(), (largest < math.inf).tolist(), strict=True)]
