"""When the engine computes tokens by the compiled step, and that the answers are those of the modules."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from leveret.engine.compiled_step import CompiledStep
from leveret.engine.engine import Engine
from leveret.engine.request import Request, SamplingParams
from leveret.kernels.native.library import missing
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.feed_forward import FeedForward
from leveret.model.paged_cache import PagedRows

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no compiled kernels: {missing()}")

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}


def model_of(**fields: Any) -> Decoder:
    """Random weights, large enough that the next id is clear."""
    generator = torch.Generator().manual_seed(7)
    model = Decoder(ModelConfig(vocab_size=97, **(SIZES | fields))).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(
            torch.randn(parameter.shape, generator=generator) * 0.3 if parameter.ndim > 1 else torch.ones(1)
        )
    return model.to(torch.bfloat16)


def test_answers_are_those_of_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(sliding_window=16)
    engine = Engine(model)
    params = SamplingParams(max_tokens=20, temperature=0.0)
    requests = [Request(prompt_ids=tuple(range(2 + n, 6 + 3 * n)), params=params) for n in range(5)]
    calls: list[int] = []
    plain = CompiledStep.__call__

    def counted(self: CompiledStep, rows: PagedRows, **how: bool) -> torch.Tensor:
        calls.append(rows.num_tokens)
        return plain(self, rows, **how)

    monkeypatch.setattr(CompiledStep, "__call__", counted)
    compiled = engine.generate(requests)
    assert sum(calls) > 60
    monkeypatch.setattr(CompiledStep, "of_all", lambda models, known: {})
    assert [one.ids for one in Engine(model).generate(requests)] == [one.ids for one in compiled]


def with_hook(model: Decoder) -> Decoder:
    model.layers[0].register_forward_hook(lambda *_: None)
    return model


def with_other_linear(model: Decoder) -> Decoder:
    class Other(nn.Linear):
        pass

    model.layers[1].mlp.up_proj = Other(64, 96, bias=False).to(torch.bfloat16)
    return model


def with_other_expert(_: Decoder) -> Decoder:
    class Other(FeedForward):
        pass

    model = model_of(family="mixtral", moe=MoeConfig(num_experts=2, experts_per_token=1))
    model.layers[1].mlp.experts[0] = Other(64, 96).to(torch.bfloat16)
    return model


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda model: model.float(), "not in bfloat16"),
        (lambda model: model.train(), "being trained"),
        (with_hook, "layers.0 has a hook"),
        (with_other_linear, "a Linear is a Other"),
        (lambda _: model_of(head_dim=16), "head_dim 16 is no multiple of 32"),
        (with_other_expert, "its feed-forward block is a Other"),
    ],
)
def test_other_models_go_through_their_modules_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture, change: Callable[[Decoder], Decoder], why: str
) -> None:
    assert CompiledStep.of(model_of()) is not None
    with caplog.at_level(logging.INFO, logger="leveret.engine"):
        assert CompiledStep.of(change(model_of())) is None
    assert why in caplog.text
