"""The two ways to multiply in 8 bits agree, and each device gets the one it can do."""

import pytest
import torch

from leveret.errors import ConfigError
from leveret.precision.fp8_format import E4M3, E5M2, amax_of, cast, scale_of
from leveret.precision.fp8_product import multiply_emulated, multiply_scaled, product_for


def stored(rows, columns, to=E4M3, seed=0):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return cast(x, scale_of(amax_of(x), to.largest, margin=0, otherwise=1.0), to)


@pytest.mark.parametrize("left", [E4M3, E5M2])
@pytest.mark.parametrize("sizes", [(32, 64, 48), (5, 32, 16), (64, 37, 32)])
def test_the_operator_of_the_tensor_cores_gives_what_is_emulated(left, sizes):
    rows, summed, columns = sizes  # PyTorch has the operator for the CPU too
    a, b = stored(rows, summed, left), stored(columns, summed, seed=1)
    emulated = multiply_emulated(a, b, dtype=torch.bfloat16, fast=False)
    real = multiply_scaled(a, b, dtype=torch.bfloat16, fast=False)
    assert real.shape == emulated.shape == (rows, columns)
    assert real.dtype == emulated.dtype == torch.bfloat16
    torch.testing.assert_close(real, emulated, rtol=2**-7, atol=1e-6)
    exact = a.written_out().double() @ b.written_out().double().t()
    assert float((emulated.double() - exact).norm() / exact.norm()) < 2**-8


def test_operands_are_laid_out_as_the_tensor_cores_want_them(monkeypatch):
    seen = []

    def fake(a, b, **arguments):
        seen.append((a, b, arguments))
        return torch.zeros(a.shape[0], b.shape[1], dtype=arguments["out_dtype"])

    monkeypatch.setattr(torch, "_scaled_mm", fake)
    x8, w8, g8 = stored(37, 32), stored(48, 32), stored(37, 48, E5M2)
    multiply_scaled(x8, w8, dtype=torch.bfloat16, fast=True)
    multiply_scaled(g8, w8.transposed(), dtype=torch.bfloat16, fast=False)
    multiply_scaled(g8.transposed(), x8.transposed(), dtype=torch.bfloat16, fast=False)
    assert [(tuple(a.shape), tuple(b.shape)) for a, b, _ in seen] == [
        ((37, 32), (32, 48)), ((37, 48), (48, 32)), ((48, 48), (48, 32)),  # 37 tokens padded to 48
    ]  # fmt: skip
    for a, b, arguments in seen:
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert a.shape[1] % 16 == b.shape[1] % 16 == 0
        assert arguments["scale_a"].shape == arguments["scale_b"].shape == ()
        assert b.dtype == torch.float8_e4m3fn
    assert [arguments["use_fast_accum"] for *_, arguments in seen] == [True, False, False]
    assert [a.dtype for a, *_ in seen] == [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e5m2]
    assert not seen[2][0][:, 37:].float().any()


def test_a_size_that_tensor_cores_refuse_is_an_error_with_a_way_out():
    with pytest.raises(ConfigError, match=r"40 columns.*16"):
        multiply_scaled(stored(16, 32), stored(40, 32), dtype=torch.bfloat16, fast=True)


@pytest.mark.parametrize(
    ("capability", "product"), [((9, 0), multiply_scaled), ((8, 9), multiply_scaled), ((8, 0), multiply_emulated)]
)
def test_a_gpu_multiplies_in_8_bits_if_it_can(monkeypatch, capability, product):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    chosen, reason = product_for(torch.device("cuda", 0))
    assert chosen is product
    assert "A GPU" in reason


def test_elsewhere_it_is_emulated():
    chosen, reason = product_for(torch.device("cpu"))
    assert chosen is multiply_emulated
    assert "slower than bf16" in reason
