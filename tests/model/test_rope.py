"""Angles are exact far out, untouched by bfloat16, and depend on distance alone; a dynamic base never drifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from leveret.model.cache import KVCache
from leveret.model.config import ModelConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.rope import RotaryEmbedding, frequencies_of, rotate

Tiny = Callable[..., Decoder]
Ids = Callable[..., torch.Tensor]

WIDTH = 64


def embedding(**rope: Any) -> RotaryEmbedding:
    config = ModelConfig(
        vocab_size=10, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=32768, rope=RopeConfig(**rope),
    )  # fmt: skip
    return RotaryEmbedding(config)


def exact_cos(position: int) -> torch.Tensor:
    exponents = torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH
    return (position / 10000.0**exponents).cos()


def test_cosines_at_position_32768_are_those_of_float64() -> None:
    cos, _ = embedding()(torch.tensor([[32768]]), None, torch.float32)
    assert (cos[0, 0, 0, : WIDTH // 2].double() - exact_cos(32768)).abs().max() < 5e-3


def test_a_model_moved_to_bfloat16_keeps_its_angles_in_float32(tiny: Tiny) -> None:
    model = tiny().to(torch.bfloat16)
    assert model.rope.frequencies.dtype == torch.float32
    cos, _ = model.rope(torch.tensor([[32768]]), None, torch.bfloat16)
    exact, _ = tiny().rope(torch.tensor([[32768]]), None, torch.float32)
    assert cos.dtype == torch.bfloat16
    assert (cos.float() - exact).abs().max() < 2**-8  # one rounding of the result, none of the angle


def test_rotating_turns_pairs_and_keeps_lengths() -> None:
    cos, sin = embedding()(torch.arange(50).unsqueeze(0), None, torch.float32)
    x = torch.randn(1, 3, 50, WIDTH, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, cos, sin)
    half = WIDTH // 2
    length = x[..., :half] ** 2 + x[..., half:] ** 2
    torch.testing.assert_close(turned[..., :half] ** 2 + turned[..., half:] ** 2, length)
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize("rope", [{}, {"kind": "linear", "factor": 4.0}, {"kind": "yarn", "factor": 4.0}])
def test_a_score_depends_on_the_distance_alone(rope: dict[str, Any]) -> None:
    rotary = embedding(**rope)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, WIDTH, generator=generator) for _ in range(2))

    def score(query_position: int, key_position: int) -> float:
        turned = [
            rotate(x, *rotary(torch.tensor([[position]]), None, torch.float32))
            for x, position in ((query, query_position), (key, key_position))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(17, 5) == pytest.approx(score(1012, 1000), abs=1e-3)
    assert score(17, 5) != pytest.approx(score(17, 6), abs=1e-3)


def test_linear_scaling_is_interpolated_positions() -> None:
    stretched, _ = embedding(kind="linear", factor=4.0)(torch.tensor([[40]]), None, torch.float32)
    plain, _ = embedding()(torch.tensor([[10]]), None, torch.float32)
    torch.testing.assert_close(stretched, plain)


def test_yarn_leaves_fast_pairs_and_interpolates_slow_ones() -> None:
    rope = RopeConfig(kind="yarn", factor=8.0)
    stretched, attention_factor = frequencies_of(rope, WIDTH, 4096)
    plain, _ = frequencies_of(RopeConfig(), WIDTH, 4096)
    torch.testing.assert_close(stretched[0], plain[0])
    torch.testing.assert_close(stretched[-1], plain[-1] / 8)
    assert attention_factor == pytest.approx(0.1 * 2.0794415 + 1)


def test_llama3_ramps_by_wavelength() -> None:
    rope = RopeConfig(kind="llama3", factor=8.0, theta=500000.0)
    stretched, _ = frequencies_of(rope, WIDTH, 8192)
    plain, _ = frequencies_of(RopeConfig(theta=500000.0), WIDTH, 8192)
    torch.testing.assert_close(stretched[0], plain[0])
    torch.testing.assert_close(stretched[-1], plain[-1] / 8)
    assert bool((stretched <= plain * 1.000001).all()) and bool((stretched >= plain / 8.000001).all())


def dynamic(tiny: Tiny) -> Decoder:
    return tiny(rope=RopeConfig(kind="dynamic", factor=4.0, theta=100.0), max_position_embeddings=8)


def test_dynamic_base_follows_the_closed_form_beyond_the_trained_length() -> None:
    rotary = embedding(kind="dynamic", factor=2.0)
    length = 65536
    cos, _ = rotary(torch.tensor([[3]]), torch.tensor([[length]]), torch.float32)
    base = 10000.0 * (2.0 * length / 32768 - 1.0) ** (WIDTH / (WIDTH - 2))
    angles = 3 / base ** (torch.arange(0, WIDTH, 2) / WIDTH)
    torch.testing.assert_close(cos[0, 0, 0, : WIDTH // 2], angles.cos())


@pytest.mark.parametrize("chunk", [1, 5, 20])
@torch.no_grad()
def test_a_dynamic_base_is_fixed_by_the_planned_length_so_cached_equals_uncached(chunk, tiny: Tiny, ids: Ids) -> None:
    model, text = dynamic(tiny), ids(1, 20)
    cache = KVCache(model.config, 1, 64)
    cache.planned_lengths = torch.tensor([20])
    pieces = [model(text[:, at : at + chunk], cache=cache) for at in range(0, 20, chunk)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(text), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_neighbour_does_not_change_the_dynamic_base_of_a_row(tiny: Tiny, ids: Ids) -> None:
    model, text = dynamic(tiny), ids(2, 20)
    cache = KVCache(model.config, 2, 64)
    cache.planned_lengths = torch.tensor([6, 20])
    both = model(text[:, :6], cache=cache)
    torch.testing.assert_close(both[:1], model(text[:1, :6]), atol=1e-5, rtol=0)
