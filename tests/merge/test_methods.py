"""Each method against its definition in plain NumPy, float64, and what must come out to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leveret.kernels.merging import gram_matrix, weighted_sum
from leveret.merge import methods

SIZE = 4000


def normal(seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * scale


BASE = normal(0)
MODELS = [BASE + normal(seed, 0.05) for seed in (1, 2, 3)]


def close(result: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(result.numpy(), expected, rtol=2e-6, atol=2e-7)


def doubles(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in tensors]


@pytest.mark.parametrize("weights", [[0.5, 0.3, 0.2], [1.0, 0.5, -0.25], [0.0, 2.0, 0.0], [0.1, 0.1, 0.1]])
def test_a_weighted_sum_is_one(weights: list[float]) -> None:
    expected = sum(weight * value for weight, value in zip(weights, doubles(*MODELS), strict=True))
    np.testing.assert_allclose(weighted_sum(MODELS, weights).numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weights", [[0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.2, 0.7], [2.0, -0.7, -0.3]])
def test_the_sum_of_one_model_with_itself_is_the_model_to_the_bit(weights: list[float]) -> None:
    assert torch.equal(weighted_sum([BASE] * 3, weights), BASE)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_weight_of_one_gives_the_model_to_the_bit_whatever_the_others_hold(number: int) -> None:
    values = [torch.full((SIZE,), float("inf")) for _ in range(3)]
    values[number] = MODELS[number]
    assert torch.equal(weighted_sum(values, [float(place == number) for place in range(3)]), MODELS[number])


def test_all_weights_zero_give_zeros() -> None:
    assert torch.equal(weighted_sum(MODELS, [0.0] * 3), torch.zeros(SIZE))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_slerp_moves_at_constant_speed_on_the_arc_between_two_directions(t: float) -> None:
    a, b = (value / value.norm() for value in (normal(1), normal(2)))
    result = weighted_sum([a, b], methods.slerp_coefficients(gram_matrix([a, b]), t))
    angle = np.arccos(float(a.double() @ b.double()))
    assert float(result.norm()) == pytest.approx(1, abs=1e-5)
    assert np.arccos(float(a.double() @ result.double())) == pytest.approx(t * angle, abs=1e-4)


def test_slerp_is_its_formula_on_tensors_of_any_length() -> None:
    (a, b), t = (normal(1), normal(2, 3.0)), 0.3
    x, y = doubles(a, b)
    angle = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    expected = (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)
    close(weighted_sum([a, b], methods.slerp_coefficients(gram_matrix([a, b]), t)), expected)


@pytest.mark.parametrize(("t", "which"), [(0.0, 0), (1.0, 1)])
def test_slerp_at_its_ends_is_a_model_to_the_bit(t: float, which: int) -> None:
    pair = MODELS[:2]
    coefficients = methods.slerp_coefficients(gram_matrix(pair), t)
    assert torch.equal(weighted_sum(pair, coefficients), pair[which])


@pytest.mark.parametrize("value", [BASE, torch.zeros(SIZE)], ids=["random", "zero"])
def test_slerp_of_a_model_with_itself_is_the_model(value: torch.Tensor) -> None:
    coefficients = methods.slerp_coefficients(gram_matrix([value, value]), 0.37)
    assert torch.equal(weighted_sum([value, value], coefficients), value)


def test_task_arithmetic_adds_scaled_changes() -> None:
    base, *models = doubles(BASE, *MODELS)
    weights, scale = [0.5, -1.0, 0.3], 0.7
    expected = base + scale * sum(weight * (value - base) for weight, value in zip(weights, models, strict=True))
    coefficients = methods.task_coefficients(weights, scale)
    np.testing.assert_allclose(weighted_sum([BASE, *MODELS], coefficients).numpy(), expected, rtol=2e-6, atol=1e-6)


def test_one_task_alone_gives_back_its_model_to_the_bit() -> None:
    far = normal(9, 1e-6)  # base + (model - base) would lose most of its digits
    assert torch.equal(weighted_sum([BASE, far], methods.task_coefficients([1.0], 1.0)), far)


def test_model_stock_is_its_formula() -> None:
    base, *models = doubles(BASE, *MODELS)
    # Three changes with a common part, so that the cosines are far from 0.
    common = normal(7, 0.05)
    models = [value + common.double().numpy() for value in models]
    tensors = [torch.from_numpy(value).float() for value in models]
    changes = [value - base for value in models]
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosine = np.mean([changes[i] @ changes[j] / np.linalg.norm(changes[i]) / np.linalg.norm(changes[j])
                      for i, j in pairs])  # fmt: skip
    assert cosine > 0.3
    ratio = 3 * cosine / (1 + 2 * cosine)
    coefficients = methods.stock_coefficients(gram_matrix([value - BASE for value in tensors]))
    close(weighted_sum([BASE, *tensors], coefficients), ratio * np.mean(models, axis=0) + (1 - ratio) * base)


def test_model_stock_of_equal_models_is_the_model_and_of_unchanged_ones_the_base() -> None:
    same = methods.stock_coefficients(gram_matrix([MODELS[0] - BASE] * 3))
    assert torch.equal(weighted_sum([BASE, *[MODELS[0]] * 3], same), MODELS[0])
    none = methods.stock_coefficients(gram_matrix([torch.zeros(SIZE)] * 2))
    assert torch.equal(weighted_sum([BASE, BASE, BASE], none), BASE)


def test_model_stock_keeps_the_base_where_changes_point_apart() -> None:
    change = normal(4)
    assert methods.stock_coefficients(gram_matrix([change, -change])) == [1.0, 0.0, 0.0]


def ties_reference(base: np.ndarray, models: list[np.ndarray], weights: list[float], density: float,
                   scale: float) -> np.ndarray:  # fmt: skip
    """TIES with a full sort, all at once."""
    changes = []
    for value in models:
        change = value - base
        kept = np.argsort(-np.abs(change), kind="stable")[: int(density * change.size)]
        trimmed = np.zeros_like(change)
        trimmed[kept] = change[kept]
        changes.append(trimmed)
    w = np.array(weights)[:, None]
    stacked = np.array(changes)
    sign = np.sign((w * stacked).sum(axis=0))
    agree = (np.sign(stacked) == sign) & (sign != 0)
    count = (w * agree).sum(axis=0)
    return base + scale * (w * stacked * agree).sum(axis=0) / np.where(count == 0, 1, count)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.2, 0.5, 0.9]])
@pytest.mark.parametrize("density", [1.0, 0.37])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_ties_trims_elects_and_means(weights: list[float], density: float, scale: float) -> None:
    deltas = []
    for value in MODELS:
        delta = value - BASE
        threshold = float(delta.abs().sort(descending=True).values[int(density * SIZE) - 1])
        deltas.append(methods.trim(delta, threshold))
    result = methods.elect(BASE, MODELS, deltas, weights, scale)
    close(result, ties_reference(*[doubles(BASE)[0]], doubles(*MODELS), weights, density, scale))


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.3, 0.2, 0.7]])
def test_an_election_among_equals_gives_the_model_to_the_bit(weights: list[float]) -> None:
    far = normal(9, 1e-4)
    deltas = [far - BASE for _ in range(3)]
    assert torch.equal(methods.elect(BASE, [far] * 3, deltas, weights, 1.0), far)


def test_nothing_left_to_elect_leaves_the_base_to_the_bit() -> None:
    zeros = [torch.zeros(SIZE) for _ in MODELS]
    assert torch.equal(methods.elect(BASE, MODELS, zeros, [1.0] * 3, 1.0), BASE)


def test_two_equal_and_opposite_changes_leave_the_base() -> None:
    base, change = torch.zeros(4), torch.tensor([1.0, -2.0, 0.5, 0.0])
    assert torch.equal(methods.elect(base, [change, -change], [change.clone(), -change], [1.0, 1.0], 1.0), base)


def test_dropping_rescales_by_exactly_one_over_the_share_kept() -> None:
    delta, random = torch.ones(SIZE), torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    result = methods.dropped(delta.clone(), random, 0.75)
    assert set(result.tolist()) == {0.0, 4.0}
    assert torch.equal(result == 0, random < 0.75)
    close(methods.add_dropped(BASE, [result, result], [0.5, 0.25], 2.0), doubles(BASE + 1.5 * result)[0])


def test_the_mean_over_many_draws_is_the_change_itself() -> None:
    draws = [methods.dropped(torch.ones(SIZE), normal(seed).sigmoid(), 0.9) for seed in range(3)]
    assert len({float(draw.sum()) for draw in draws}) > 1
    generator = torch.Generator().manual_seed(1)
    mean = sum(
        methods.dropped(torch.ones(SIZE), torch.rand(SIZE, generator=generator), 0.9) for _ in range(200)
    ) / 200  # fmt: skip
    # Of 800,000 draws of 0 or 10 (standard deviation 3), the mean is 1 within five standard errors.
    assert float(mean.mean()) == pytest.approx(1.0, abs=5 * 3 / 800_000**0.5)
