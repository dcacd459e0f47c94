"""Quantized Linears: three products that agree, and storage that survives moving, casting and reloading."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from leveret.errors import ConfigError
from leveret.kernels.int_matmul import matmul_packed, matmul_plain, prepack
from leveret.kernels.integer_product import compiled_refusal, multiply_compiled
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.int4 import Int4Linear
from leveret.precision.int8 import Int8Linear
from leveret.precision.linear import FEW_ROWS, PACKED_TOLERANCE, QuantizedLinear


def a_linear(inputs: int = 128, outputs: int = 48, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def some_rows(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture(params=["kernels", "operators"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who reads the integers: the compiled kernels, or PyTorch's operators where there are none."""
    if request.param == "operators":
        monkeypatch.setattr("leveret.precision.linear.compiled_refusal", lambda **_: "not compiled")
    elif (refusal := compiled_refusal(in_features=128, group_size=32, device=torch.device("cpu"))) is not None:
        pytest.skip(refusal)
    return str(request.param)


@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_the_dequantized_weight(kind: type[QuantizedLinear], bias: bool) -> None:
    linear = a_linear(bias=bias)
    quantized = kind.from_linear(linear, group_size=32)
    expected = nn.functional.linear(some_rows(), quantized.dequantize(), linear.bias)
    for quantized.product in ("plain", "copy"):
        torch.testing.assert_close(quantized(some_rows()), expected, rtol=0, atol=0)
    error = (expected - linear(some_rows())).norm() / linear(some_rows()).norm()
    assert 0 < float(error) < (0.15 if kind is Int4Linear else 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kind", "group_size", "symmetric"),
    [(Int4Linear, 32, True), (Int4Linear, 128, False), (Int8Linear, None, True)],
)
def test_the_packed_product_agrees_with_the_plain_one(
    kind: type[QuantizedLinear], group_size: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    quantized = kind.from_linear(a_linear(), group_size=group_size, symmetric=symmetric)
    if refusal := quantized.packed_refusal():
        pytest.skip(refusal)
    plain = matmul_plain(some_rows(dtype), quantized.integers())
    packed = matmul_packed(some_rows(dtype), prepack(quantized.integers(), dtype))
    assert packed.dtype == dtype and packed.shape == plain.shape == (2, 5, 48)
    assert float((packed - plain).float().norm() / plain.float().norm()) < PACKED_TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("product", "dtype", "rows", "reads_integers"),
    [
        ("copy", torch.bfloat16, FEW_ROWS, True),
        ("copy", torch.bfloat16, FEW_ROWS + 1, False),
        ("packed", torch.bfloat16, 50, True),
        ("packed", torch.float32, 1, False),
        ("plain", torch.bfloat16, 1, False),
    ],
)
def test_integers_are_read_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, reader: str, product: str, dtype: torch.dtype, rows: int, reads_integers: bool
) -> None:
    calls: list[int] = []
    product_of = {"kernels": multiply_compiled, "operators": matmul_packed}[reader]
    monkeypatch.setattr(
        f"leveret.precision.linear.{product_of.__name__}", lambda x, packed: calls.append(1) or product_of(x, packed)
    )
    quantized = Int4Linear.from_linear(a_linear(), group_size=32)
    quantized.product = product
    x = torch.randn(rows, 128).to(dtype)
    expected = matmul_plain(x, quantized.integers())
    torch.testing.assert_close(quantized(x), expected, rtol=0.02, atol=0.02)
    # The first packed product of a layer is also made once to be compared with the plain one.
    assert len(calls) == (2 if reads_integers else 0)


def test_a_packed_product_that_disagrees_is_not_used_and_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, reader: str, caplog: pytest.LogCaptureFixture
) -> None:
    quantized = Int4Linear.from_linear(a_linear(), group_size=32)
    x = some_rows(torch.bfloat16)[0]
    monkeypatch.setattr("leveret.precision.linear._multiply", lambda x, packed: torch.zeros(*x.shape[:-1], 48))
    with caplog.at_level(logging.WARNING, logger="leveret.precision"):
        for quantized.product in ("copy", "packed"):
            torch.testing.assert_close(quantized(x), matmul_plain(x, quantized.integers()))
    assert caplog.text.count("off by 1") == 1


@pytest.mark.parametrize(
    ("group_size", "symmetric", "bits", "why"),
    [(16, True, 4, "not 16"), (32, True, 8, "not groups of 32"), (None, False, 8, "symmetric")],
)
def test_the_packed_product_says_why_it_cannot(
    monkeypatch: pytest.MonkeyPatch, group_size: int | None, symmetric: bool, bits: int, why: str
) -> None:
    monkeypatch.setattr("leveret.precision.linear.compiled_refusal", lambda **_: "not compiled")
    kind = Int4Linear if bits == 4 else Int8Linear
    refusal = kind.from_linear(a_linear(), group_size=group_size, symmetric=symmetric).packed_refusal()
    assert refusal is not None and why in refusal


@pytest.mark.parametrize("product", ["plain", "copy", "packed"])
def test_activations_get_their_gradient_whatever_the_product(product: str) -> None:
    quantized = Int4Linear.from_linear(a_linear(), group_size=32)
    quantized.product = product
    x = some_rows().requires_grad_()
    quantized(x).sum().backward()
    torch.testing.assert_close(x.grad[0, 0], quantized.dequantize().sum(0))


def test_casting_a_model_leaves_the_stored_scales_as_they_are() -> None:
    model = nn.Sequential(Int4Linear.from_linear(a_linear(bias=True), group_size=32))
    scales = model[0].scales.clone()
    model.to(torch.bfloat16)
    assert model[0].scales.dtype == torch.float16 and torch.equal(model[0].scales, scales)
    assert model[0].bias.dtype == torch.bfloat16 and model[0].qweight.dtype == torch.int32
    assert model(some_rows(torch.bfloat16)).dtype == torch.bfloat16


def test_nothing_stale_is_multiplied_after_new_weights_are_loaded() -> None:
    first = Int4Linear.from_linear(a_linear(), group_size=32)
    other = Int4Linear.from_linear(nn.Linear(128, 48, bias=False), group_size=32)
    first(some_rows())
    first.load_state_dict(other.state_dict())
    torch.testing.assert_close(first(some_rows()), other(some_rows()), rtol=0, atol=0)


def test_the_state_dict_is_the_stored_layout() -> None:
    quantized = Int4Linear.from_linear(a_linear(bias=True), group_size=32)
    shapes = {name: tuple(tensor.shape) for name, tensor in quantized.state_dict().items()}
    assert shapes == {"qweight": (16, 48), "qzeros": (4, 6), "scales": (4, 48), "g_idx": (128,), "bias": (48,)}
    stored = sum(tensor.numel() * tensor.element_size() for tensor in quantized.state_dict().values())
    assert stored < 0.35 * 2 * 48 * 128 + 4 * 128 + 4 * 48


def test_a_shape_that_does_not_fit_is_refused_before_anything_is_stored() -> None:
    with pytest.raises(ConfigError, match="does not divide 128"):
        Int4Linear.from_linear(a_linear(), group_size=96)
    with pytest.raises(ConfigError, match="multiple of 8"):
        Int4Linear(128, 50, storage=GptqStorage(bits=4, group_size=32, symmetric=True))
