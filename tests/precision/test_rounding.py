"""Rounding to nearest: how much is lost, and the groups that are awkward."""

from __future__ import annotations

import pytest
import torch

from leveret.errors import ConfigError, WeightsError
from leveret.kernels.int_matmul import dequantize
from leveret.precision.rounding import relative_error, round_to_nearest


def bell(outputs: int = 64, inputs: int = 256) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.mark.parametrize(("bits", "most"), [(4, 0.11), (8, 0.007)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_bell_shaped_weight_loses_about_what_theory_says(bits: int, most: float, symmetric: bool) -> None:
    quantized = round_to_nearest(bell(), bits=bits, group_size=128, symmetric=symmetric)
    assert most / 3 < relative_error(bell(), quantized) < most


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_scale_search_never_makes_a_group_worse(symmetric: bool) -> None:
    torch.manual_seed(0)
    weight = torch.distributions.StudentT(3.0).sample((32, 256))
    errors = []
    for search in (False, True):
        quantized = round_to_nearest(weight, bits=4, group_size=32, symmetric=symmetric, search=search)
        errors.append((dequantize(quantized, torch.float32) - weight).reshape(32, -1, 32).square().sum(-1))
    without, with_search = errors
    assert bool((with_search <= without * (1 + 1e-6) + 1e-12).all())
    assert float(with_search.sum()) < 0.97 * float(without.sum())


def test_smaller_groups_lose_less() -> None:
    errors = [
        relative_error(bell(), round_to_nearest(bell(), bits=4, group_size=size, symmetric=True))
        for size in (None, 128, 32)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_groups_of_one_sign_and_groups_of_zeros_are_stored(symmetric: bool, shift: float) -> None:
    weight = shift + torch.rand(8, 64, generator=torch.Generator().manual_seed(1)) * 0.1
    weight[3] = 0.0
    quantized = round_to_nearest(weight, bits=4, group_size=32, symmetric=symmetric)
    assert int(quantized.zeros_GO.min()) >= 1, "zero point 0 is ambiguous in the stored layout"
    decoded = dequantize(quantized, torch.float32)
    assert float(decoded[3].abs().max()) == 0.0
    assert float((decoded - weight).abs().max()) < 0.08


def test_a_result_does_not_depend_on_how_many_rows_are_rounded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = round_to_nearest(bell(), bits=4, group_size=64, symmetric=False)
    monkeypatch.setattr("leveret.precision.rounding.CHUNK_WEIGHTS", 3 * 256)
    in_parts = round_to_nearest(bell(), bits=4, group_size=64, symmetric=False)
    assert torch.equal(whole.levels_OI, in_parts.levels_OI)
    assert torch.equal(whole.scales_GO, in_parts.scales_GO)


def test_scales_that_are_stored_are_the_scales_that_were_judged() -> None:
    quantized = round_to_nearest(bell(), bits=4, group_size=32, symmetric=True)
    assert quantized.scales_GO.dtype == torch.float16


def test_a_group_size_that_does_not_divide_names_sizes_that_do() -> None:
    with pytest.raises(ConfigError, match="group_size 128 does not divide 96") as caught:
        round_to_nearest(bell(8, 96), bits=4, group_size=128, symmetric=True)
    assert "32 or 16 or 8 or null" in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weight = bell()
    weight[1, 2] = bad
    with pytest.raises(WeightsError, match="1 of 16384 weights are not finite"):
        round_to_nearest(weight, bits=8, group_size=None, symmetric=True)


def test_weights_too_large_for_the_stored_scale_are_refused() -> None:
    with pytest.raises(WeightsError, match="too large for a float16 scale"):
        round_to_nearest(bell() * 1e9, bits=4, group_size=32, symmetric=True)
