"""The GPTQ solver against the paper's equations in plain loops, and against rounding to nearest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leveret.errors import ConfigError, WeightsError
from leveret.kernels.int_matmul import GroupedIntegers, dequantize
from leveret.precision.rounding import round_to_nearest
from leveret.quantize.gptq import BLOCK_COLUMNS, GptqSettings, solve_gptq, split_outputs
from leveret.quantize.hessian import BLOCK_INPUTS, Hessian, output_error

INPUTS = 96


def settings(**changes: object) -> GptqSettings:
    plain: dict[str, object] = {
        "bits": 4, "group_size": 32, "symmetric": True, "search": False, "descending": False, "damp": 0.01,
    }  # fmt: skip
    return GptqSettings(**(plain | changes))


def correlated(inputs: int = INPUTS, outputs: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the H of inputs that come together, some much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) * torch.linspace(1, 0.05, inputs)[:, None]
    hessian = Hessian(inputs)
    hessian.add(torch.randn(4 * inputs, inputs, generator=generator) @ mixing.T)
    return torch.randn(outputs, inputs, generator=generator) * 0.05, hessian.mean()


def by_the_equations(weight: np.ndarray, hessian: np.ndarray, plan: GptqSettings) -> np.ndarray:
    """Optimal Brain Surgeon column by column: H of the columns that are left is inverted anew each time.

    The scale reaches every weight of the group (no search), as `settings` above asks.
    """
    inputs = weight.shape[1]
    size = plan.group_size or inputs
    squares = np.diag(hessian)
    order = np.argsort(-squares, kind="stable")
    if not plan.descending:  # whole groups, those of large inputs first, and the columns of each in the same way
        groups = sorted(range(inputs // size), key=lambda group: -squares[group * size : (group + 1) * size].mean())
        order = np.concatenate([[i for i in order if i // size == group] for group in groups])
    left = weight[:, order].astype(np.float64)
    damped = hessian[np.ix_(order, order)] + plan.damp * np.diag(hessian).mean() * np.eye(inputs)
    rounded = np.zeros_like(left)
    for i in range(inputs):
        if i % size == 0:
            scale, zero = grid_of(left[:, i : i + size], plan)
        level = np.clip(np.round(left[:, i] / scale) + zero, 0, 2**plan.bits - 1)
        rounded[:, i] = (level - zero) * scale
        inverse = np.linalg.inv(damped[i:, i:])
        left[:, i:] -= np.outer((left[:, i] - rounded[:, i]) / inverse[0, 0], inverse[0])
    back = np.empty_like(rounded)
    back[:, order] = rounded
    return back


def grid_of(group: np.ndarray, plan: GptqSettings) -> tuple[np.ndarray, np.ndarray]:
    high, low = group.max(1).clip(min=0), group.min(1).clip(max=0)
    if plan.symmetric:
        scale = -np.where(high > -low, high, low) / 2 ** (plan.bits - 1)
        return scale.astype(np.float16).astype(np.float64), np.full(len(scale), 2 ** (plan.bits - 1))
    top = 2**plan.bits - 1
    low = np.minimum(low, -high / (top - 1))
    scale = ((high - low) / top).astype(np.float16).astype(np.float64)
    return scale, np.clip(np.round(-low / scale), 1, top)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_solver_rounds_as_the_equations_of_the_paper_do(bits: int, symmetric: bool, descending: bool) -> None:
    weight, hessian = correlated()
    plan = settings(bits=bits, symmetric=symmetric, descending=descending)
    wanted = by_the_equations(weight.numpy(), hessian.numpy(), plan)
    found = dequantize(solve_gptq(weight, hessian, plan), torch.float32).numpy()
    # One column on the edge between two levels changes those after it, so nearly all rows are equal, not all.
    equal = np.isclose(found, wanted, rtol=0, atol=1e-6).all(axis=1)
    assert equal.mean() > 0.85
    errors = [output_error(torch.from_numpy(q - weight.numpy()).float(), weight, hessian) for q in (found, wanted)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize("group_size", [16, 24, 48, None])
def test_blocks_change_nothing_but_the_time(group_size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = correlated(outputs=8)
    plan = settings(group_size=group_size, bits=8)
    assert BLOCK_COLUMNS >= INPUTS
    whole = dequantize(solve_gptq(weight, hessian, plan), torch.float32)
    monkeypatch.setattr("leveret.quantize.gptq.BLOCK_COLUMNS", 32)
    parts = dequantize(solve_gptq(weight, hessian, plan), torch.float32)
    assert torch.isclose(whole, parts, rtol=0, atol=1e-6).all(1).float().mean() >= 0.75
    torch.testing.assert_close(parts, whole, rtol=0, atol=0.005)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, None])
@pytest.mark.parametrize("descending", [False, True])
def test_the_product_loses_less_than_by_rounding_to_nearest(
    bits: int, group_size: int | None, descending: bool
) -> None:
    weight, hessian = correlated()
    nearest = round_to_nearest(weight, bits=bits, group_size=group_size, symmetric=True)
    plan = settings(bits=bits, group_size=group_size, search=True, descending=descending)
    solved = solve_gptq(weight, hessian, plan)
    errors = [output_error(dequantize(each, torch.float32) - weight, weight, hessian) for each in (nearest, solved)]
    assert errors[1] < 0.8 * errors[0]


def test_inputs_that_never_come_together_are_rounded_to_nearest() -> None:
    weight, _ = correlated()
    solved = solve_gptq(weight, torch.eye(INPUTS), settings())
    nearest = round_to_nearest(weight, bits=4, group_size=32, symmetric=True, search=False)
    assert torch.equal(solved.levels_OI, nearest.levels_OI) and torch.equal(solved.scales_GO, nearest.scales_GO)


def test_descending_groups_are_of_the_columns_in_order_of_their_activations() -> None:
    weight, hessian = correlated()
    solved = solve_gptq(weight, hessian, settings(descending=True))
    order = torch.argsort(hessian.diagonal(), descending=True)
    assert torch.equal(solved.group_of_input[order], torch.arange(INPUTS, dtype=torch.int32) // 32)
    assert solved.group_size is None
    assert solve_gptq(weight, hessian, settings()).group_size == 32


def test_an_input_that_is_always_zero_keeps_its_weights() -> None:
    weight, hessian = correlated()
    hessian[5, :] = hessian[:, 5] = 0
    kept = dequantize(solve_gptq(weight, hessian, settings(bits=8)), torch.float32)[:, 5]
    torch.testing.assert_close(kept, weight[:, 5], rtol=0, atol=0.002)


def test_matrices_solved_over_each_other_are_what_each_alone_is() -> None:
    weight, hessian = correlated()
    together = solve_gptq(weight, hessian, settings(bits=8))
    first, second = split_outputs(together, [16, 8])
    assert first.levels_OI.shape == (16, INPUTS) and second.scales_GO.shape == (3, 8)
    alone = solve_gptq(weight[16:], hessian, settings(bits=8))
    torch.testing.assert_close(dequantize(second, torch.float32), dequantize(alone, torch.float32), rtol=0, atol=0.003)
    whole = torch.cat([dequantize(part, torch.float32) for part in (first, second)])
    assert torch.equal(whole, dequantize(together, torch.float32))


def test_few_tokens_and_no_tokens_can_be_solved_too(caplog: pytest.LogCaptureFixture) -> None:
    weight, _ = correlated()
    few = Hessian(INPUTS)
    few.add(torch.randn(3, INPUTS, generator=torch.Generator().manual_seed(0)))
    for hessian in (few.mean(), Hessian(INPUTS).mean()):
        solved = solve_gptq(weight, hessian, settings())
        assert isinstance(solved, GroupedIntegers)
        assert float((dequantize(solved, torch.float32) - weight).norm() / weight.norm()) < 0.5


def test_wrong_group_sizes_and_numbers_that_are_not_finite_are_refused() -> None:
    weight, hessian = correlated()
    with pytest.raises(ConfigError, match="group_size 64 does not divide 96"):
        solve_gptq(weight, hessian, settings(group_size=64))
    hessian[0, 0] = torch.nan
    with pytest.raises(WeightsError, match="some inputs are not finite"):
        solve_gptq(weight, hessian, settings())


def test_the_hessian_is_the_mean_of_the_outer_products() -> None:
    inputs = BLOCK_INPUTS + 8
    x = torch.randn(2, 5, inputs, generator=torch.Generator().manual_seed(0))
    hessian = Hessian(inputs)
    hessian.add(x)
    hessian.add(x[:1])
    rows = torch.cat([x, x[:1]]).reshape(-1, inputs).double()
    assert hessian.tokens == 15
    torch.testing.assert_close(hessian.mean().double(), rows.T @ rows / 15, rtol=1e-4, atol=1e-5)


def test_the_output_error_is_that_of_the_product_on_those_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, lost = (torch.randn(shape, generator=generator) for shape in ((50, 16), (8, 16), (8, 16)))
    hessian = Hessian(16)
    hessian.add(x)
    wanted = float((x @ lost.T).norm() / (x @ weight.T).norm())
    assert output_error(lost, weight, hessian.mean()) == pytest.approx(wanted, rel=1e-4)
