"""Batch-invariant mode: to the last bit the same numbers alone and in a crowd, in bfloat16 too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leveret.engine.config import EngineConfig
from leveret.engine.engine import Engine
from leveret.engine.logprobs import TokenScore
from leveret.engine.request import Completion, Request, SamplingParams
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.swap import quantize_linears

from .conftest import random_decoder

CONFIG = EngineConfig(batch_invariant=True, cache_block_tokens=8, prefill_chunk_tokens=24, max_rows=12)
SIZES = {
    "vocab_size": 160, "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 256,
}  # fmt: skip


def model_of(kind: str) -> Decoder:
    more: dict[str, Any] = {"moe": MoeConfig(num_experts=4, experts_per_token=2)} if kind == "experts" else {}
    model = random_decoder(ModelConfig(**SIZES, **more)).requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.2)
    if kind != "float32":
        model = model.to(torch.bfloat16)
    if kind == "quantized":
        quantize_linears(model, GptqStorage(bits=4, group_size=32, symmetric=True), search=False)
    return model


def requests_of(count: int) -> tuple[list[Request], list[list[TokenScore]]]:
    """Requests of all kinds, half of which begin alike, and where the scores of their tokens are written."""
    scores: list[list[TokenScore]] = [[] for _ in range(count)]
    requests = []
    for number in range(count):
        own = [(3 * place + 5 * number) % 160 for place in range(1 + 4 * number % 27)]
        prompt = [*range(30), *own] if number % 2 else own
        params = SamplingParams(max_tokens=10 + number % 5, temperature=float(number % 3), seed=number, logprobs=2)
        requests.append(Request(prompt_ids=tuple(prompt), params=params, record=scores[number].append))
    return requests, scores


@pytest.mark.parametrize("kind", ["bfloat16", "quantized", "float32", "experts"])
def test_ids_and_scores_are_the_same_bits_alone_in_a_crowd_and_after_a_preemption(kind: str) -> None:
    model = model_of(kind)
    alone: list[Completion] = []
    requests, single = requests_of(14)
    for request in requests:
        alone += Engine(model, CONFIG).generate([request])
    for num_blocks in (400, 14):
        requests, together = requests_of(14)
        engine = Engine(model, CONFIG)
        engine._num_blocks = num_blocks
        engine._scheduler = engine._new_scheduler()
        assert engine.generate(requests) == alone
        assert together == single  # floats, compared exactly
        assert engine.stats.reused_tokens > 0 and (engine.stats.preemptions > 0) == (num_blocks == 14)


def test_it_is_the_model_that_answers() -> None:
    model = model_of("float32")
    requests, _ = requests_of(6)
    greedy = [Request(prompt_ids=each.prompt_ids, params=SamplingParams(max_tokens=8)) for each in requests]
    assert Engine(model, CONFIG).generate(greedy) == Engine(model).generate(greedy)


def test_nothing_is_guessed() -> None:
    engine = Engine(model_of("float32"), CONFIG, draft=model_of("float32"))
    engine.generate([Request(prompt_ids=(1, 2, 3) * 6, params=SamplingParams(max_tokens=20))])
    assert engine.stats.drafted_tokens == 0
