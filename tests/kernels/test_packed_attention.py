"""Attention over packed documents: the compiled kernel against the same written out, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leveret.kernels.packed_attention import can_pack, find_documents, packed_attention, plain_packed_attention


def case(width: int, heads: int, groups: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Query, key, value; cos and signed sin of (pseudo) angles; document ids of two rows of 90 tokens."""
    generator = torch.Generator().manual_seed(width + heads)
    sizes = (heads * width, groups * width, groups * width)
    inputs = [torch.randn(2, 90, size, generator=generator).bfloat16() for size in sizes]
    angles = torch.rand(180, width // 2, generator=generator) * 6
    cos = torch.cat((angles.cos(), angles.cos()), dim=1).bfloat16()
    signed_sin = torch.cat((-angles.sin(), angles.sin()), dim=1).bfloat16()
    lengths = [[1, 2, 33, 5, 4, 40, -5], [70, 3, 16, 1]]  # a negative one is padding
    ids = [[number if n > 0 else -1 for number, n in enumerate(row) for _ in range(abs(n))] for row in lengths]
    return inputs, cos, signed_sin, torch.tensor(ids)


@pytest.mark.parametrize("window", [None, 8, 33, 500])
@pytest.mark.parametrize(("width", "heads", "groups"), [(32, 4, 4), (64, 4, 2), (128, 3, 1)])
def test_values_and_gradients_are_those_of_float32(
    attention_build: str, width: int, heads: int, groups: int, window: int | None
) -> None:
    inputs, cos, signed_sin, ids = case(width, heads, groups)
    documents = find_documents(ids)
    slope = torch.randn(2, 90, heads * width, generator=torch.Generator().manual_seed(5)).bfloat16()
    slope[ids < 0] = 0  # nothing reads what padding receives
    leaves = [each.clone().requires_grad_() for each in inputs]
    assert can_pack(leaves[0], leaves[1], leaves[2], head_dim=width, documents=documents)
    arguments = {"documents": documents, "head_dim": width, "window": window}
    out = packed_attention(*leaves, cos=cos, signed_sin=signed_sin, **arguments)  # type: ignore[arg-type]
    out.backward(slope)
    exact = [each.float().requires_grad_() for each in inputs]
    expected = plain_packed_attention(
        *exact,
        cos=cos.float(),
        signed_sin=signed_sin.float(),
        **arguments,  # type: ignore[arg-type]
    )
    expected.backward(slope.float())
    for mine, reference in [(out, expected), *((a.grad, b.grad) for a, b in zip(leaves, exact, strict=True))]:
        assert mine is not None and reference is not None
        assert (mine.float() - reference).norm() < 0.005 * reference.norm()


def test_padding_gets_zeros_and_gives_no_gradient(attention_build: str) -> None:
    inputs, cos, signed_sin, ids = case(32, 2, 1)
    leaves = [each.clone().requires_grad_() for each in inputs]
    out = packed_attention(
        *leaves, cos=cos, signed_sin=signed_sin, documents=find_documents(ids), head_dim=32, window=None
    )
    out.float().sum().backward()
    for each in (out, *(leaf.grad for leaf in leaves)):
        assert each is not None and not each[ids < 0].any()


def test_the_result_does_not_depend_on_the_number_of_threads(attention_build: str) -> None:
    inputs, cos, signed_sin, ids = case(64, 4, 2)
    found = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            leaves = [each.clone().requires_grad_() for each in inputs]
            out = packed_attention(
                *leaves, cos=cos, signed_sin=signed_sin, documents=find_documents(ids), head_dim=64, window=None
            )
            out.backward(torch.ones_like(out))
            found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True) if a is not None and b is not None)


def test_odd_heads_float32_and_too_little_work_are_left_to_the_general_way(attention_build: str) -> None:
    x = torch.zeros(1, 8, 96, dtype=torch.bfloat16)
    documents = find_documents(torch.zeros(1, 8))
    assert can_pack(x, x, x, head_dim=32, documents=documents)
    assert not can_pack(x, x, x, head_dim=48, documents=documents)
    assert not can_pack(x.float(), x, x, head_dim=32, documents=documents)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)  # one document and three heads
        assert not can_pack(x, x, x, head_dim=32, documents=documents)
    finally:
        torch.set_num_threads(threads)


def test_documents_are_runs_of_one_id() -> None:
    documents = find_documents(torch.tensor([[0, 0, 1, -1], [1, 1, 1, 1]]))
    assert documents.starts.tolist() == [0, 2, 4]
    assert documents.lengths.tolist() == [2, 1, 4]
    assert not documents.cover_all
