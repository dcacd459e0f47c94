"""Every shape that the fast attention treats on its own equals the written-out one."""

from __future__ import annotations

import pytest
import torch

from leveret.kernels.attention import additive_mask, attention, plain_attention


def tensors(length: int, keys: int, heads: int, groups: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, length, 8), (2, groups, keys, 8), (2, groups, keys, 8)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(
    ("length", "keys", "masked"), [(9, 9, False), (9, 9, True), (3, 9, True), (1, 9, True), (1, 9, False)]
)
def test_fast_attention_equals_the_plain_one(length, keys, masked, groups, dtype, tolerance) -> None:
    query, key, value = tensors(length, keys, 4, groups, dtype)
    positions = torch.arange(keys - length, keys).unsqueeze(0)
    mask = additive_mask(positions, torch.arange(keys).unsqueeze(0), window=4, dtype=dtype) if masked else None
    is_causal = not masked and length > 1
    fast = attention(query, key, value, mask=mask, is_causal=is_causal)
    slow = plain_attention(query, key, value, mask=mask, is_causal=is_causal)
    assert fast.shape == (2, 4, length, 8)
    torch.testing.assert_close(fast, slow, atol=tolerance, rtol=tolerance)


def test_each_query_head_reads_the_key_head_of_its_group() -> None:
    query, key, value = tensors(1, 5, 4, 2, torch.float32)
    changed = value.clone()
    changed[:, 1] += 1
    moved = attention(query, key, changed, mask=None, is_causal=False) - attention(
        query, key, value, mask=None, is_causal=False
    )
    torch.testing.assert_close(moved[:, :2], torch.zeros(2, 2, 1, 8))
    torch.testing.assert_close(moved[:, 2:], torch.ones(2, 2, 1, 8))


def test_a_mask_lets_a_query_read_its_window_of_its_document_only() -> None:
    along = torch.arange(6).unsqueeze(0)
    documents = torch.tensor([[0, 0, 0, 1, 1, -1]])
    mask = additive_mask(
        along, along, window=2, query_documents=documents, key_documents=documents, dtype=torch.float32
    )
    readable = (mask[0, 0] == 0).int().tolist()
    assert readable == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_the_short_square_trained_in_bfloat16_has_the_gradients_of_the_plain_one(groups, masked) -> None:
    generator = torch.Generator().manual_seed(1)
    fast = [tensor.requires_grad_() for tensor in tensors(21, 21, 4, groups, torch.bfloat16)]
    slow = [tensor.detach().float().requires_grad_() for tensor in fast]
    slope = torch.randn((2, 4, 21, 8), generator=generator)
    along = torch.arange(21).unsqueeze(0)
    documents = torch.stack([torch.arange(21) // 6, torch.arange(21) // 9])
    mask = additive_mask(
        along, along, window=4, query_documents=documents, key_documents=documents, dtype=torch.bfloat16
    )
    given = {"mask": mask, "is_causal": False} if masked else {"mask": None, "is_causal": True}
    out = attention(*fast, **given)
    assert out.grad_fn is not None and "Sdp" not in type(out.grad_fn).__name__, "the written-out path was not taken"
    expected = plain_attention(*slow, **given)
    torch.testing.assert_close(out.float(), expected, atol=3e-2, rtol=3e-2)
    out.backward(slope.bfloat16())
    expected.backward(slope)
    for mine, reference in zip(fast, slow, strict=True):
        torch.testing.assert_close(mine.grad.float(), reference.grad, atol=6e-2, rtol=6e-2)
