"""The numbers for one tensor: where in the model it stands, and what DARE draws for it."""

from __future__ import annotations

import pytest
import torch

from leveret.merge.blocks import uniform
from leveret.merge.config import MergeConfig
from leveret.merge.settings import settings_for


@pytest.mark.parametrize(
    ("name", "t"),
    [
        ("model.embed_tokens.weight", 0.0),
        ("model.layers.0.mlp.up_proj.weight", 0.0),
        ("model.layers.1.mlp.up_proj.weight", 0.5),
        ("model.layers.3.mlp.up_proj.weight", 0.7),
        ("model.layers.4.mlp.up_proj.weight", 0.6),
        ("model.norm.weight", 0.6),
        ("lm_head.weight", 0.6),
    ],
)
def test_a_gradient_begins_at_the_embedding_and_ends_at_the_head(name: str, t: float) -> None:
    config = MergeConfig(models=["a", "b"], output="m", method="slerp", t=[0.0, 0.5, 0.9, 0.7, 0.6])
    assert settings_for(config, name, 5).t == pytest.approx(t)


def test_what_is_dropped_differs_by_seed_tensor_model_and_place() -> None:
    of = {"seed": 0, "name": "w", "model": 0, "start": 0}
    first = uniform(64, **of)  # type: ignore[arg-type]
    assert torch.equal(uniform(64, **of), first)  # type: ignore[arg-type]
    for other in ({"seed": 1}, {"name": "v"}, {"model": 1}, {"start": 64}):
        assert not torch.equal(uniform(64, **of | other), first)  # type: ignore[arg-type]
