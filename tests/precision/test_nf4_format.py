"""NF4 against bitsandbytes: bytes, scales in eight bits and what is written out are the same to the bit."""

from __future__ import annotations

import warnings

import pytest
import torch

from leveret.precision.nf4_format import BLOCK, VALUES, quantize_nf4

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is the oracle for NF4")

SHAPES = [(32, 64), (96, 160), (3, 70), (640, 192), (1, 64), (5, 12)]


def weights(shape, dtype=torch.float32):
    torch.manual_seed(sum(shape))
    weight = torch.randn(shape) * torch.rand(shape[0], 1) * 0.1
    return weight.to(dtype)


def their_values(packed, state):
    """What bitsandbytes writes out. Its kernel for CPUs goes wrong on some rows that are no whole blocks."""
    shape = state.shape
    if shape.numel() % BLOCK == 0:
        state.shape = torch.Size([shape.numel() // BLOCK, BLOCK])
    return functional.dequantize_4bit(packed, state).view(shape)


def test_the_sixteen_values_are_the_published_ones():
    assert torch.equal(torch.tensor(VALUES), functional.get_4bit_type("nf4", device="cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_scales_and_values_are_those_of_bitsandbytes(shape, dtype):
    weight = weights(shape, dtype)
    theirs, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    ours = quantize_nf4(weight)
    assert torch.equal(ours.packed, theirs.view(-1))
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.equal(ours.nested_absmax, state.state2.absmax)
    assert ours.offset == state.offset.item()
    assert torch.equal(ours.dequantize(dtype), their_values(theirs, state))


def test_without_double_quantization_too():
    weight = weights((96, 160))
    theirs, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    ours = quantize_nf4(weight, double_quantization=False)
    assert torch.equal(ours.packed, theirs.view(-1)) and torch.equal(ours.absmax, state.absmax)
    assert torch.equal(ours.dequantize(torch.float32), their_values(theirs, state))


def test_a_block_of_zeros_stays_zeros():
    weight = torch.zeros(2, BLOCK)
    assert torch.equal(quantize_nf4(weight).dequantize(torch.float32), weight)


def test_four_bits_lose_a_tenth_of_a_normal_weight():
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    lost = (quantize_nf4(weight).dequantize(torch.float32) - weight).norm() / weight.norm()
    assert 0.07 < lost < 0.1
