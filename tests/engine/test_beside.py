"""Several models in one engine: each answers as it does alone, in the same steps, and reuses only its own."""

from __future__ import annotations

import copy
import gc
import itertools
from dataclasses import replace

import pytest
import torch

from leveret.engine.beside import Beside
from leveret.engine.config import EngineConfig
from leveret.engine.engine import Engine
from leveret.engine.request import Request, SamplingParams
from leveret.errors import ConfigError, RequestError
from leveret.model.config import ModelConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.lora import LoraSettings, lora_modules
from leveret.model.lora_targets import add_lora

from .conftest import random_decoder, tiny_config

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
PROMPT = tuple(range(5, 40))


def under_adapter(model: Decoder, seed: int) -> Decoder:
    """A model in the same memory, with an adapter that shows."""
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    other = copy.deepcopy(model, shared)
    add_lora(other, LoraSettings(rank=2 + seed, alpha=4), ["q_proj", "down_proj"], seed=seed)
    for number, layer in enumerate(lora_modules(other.eval()).values()):
        with torch.no_grad():
            layer.lora_B.normal_(std=0.7, generator=torch.Generator().manual_seed(10 * seed + number))
    return other


def base_of(dtype: torch.dtype) -> Decoder:
    return random_decoder(ModelConfig(vocab_size=97, **SIZES)).requires_grad_(False).to(dtype)


def requests_of(count: int) -> list[Request]:
    """All begin alike; of different lengths."""
    params = SamplingParams(max_tokens=12)
    return [Request(prompt_ids=(*PROMPT, *range(n % 3)), params=params) for n in range(count)]


def all_together(engines: list[Engine | Beside], requests: list[Request]) -> list[tuple[int, ...]]:
    """Each request to each engine, all under way at once."""
    rows = [engine.submit(request) for request in requests for engine in engines]
    while any(row.finish_reason is None for row in rows):
        engines[0].runs_in.step()
    return [row.completion().ids for row in rows]


@pytest.mark.parametrize(("dtype", "invariant"), [("float32", False), ("float32", True), ("bfloat16", True)])
def test_each_model_answers_as_it_does_alone(dtype: str, invariant: bool) -> None:
    config, base = EngineConfig(batch_invariant=invariant), base_of(getattr(torch, dtype))
    models = [base, under_adapter(base, 1), under_adapter(base, 2)]
    alone = [[one.ids for one in Engine(model, config).generate(requests_of(4))] for model in models]
    engine = Engine(base, config)
    backends: list[Engine | Beside] = [engine, *(engine.beside(model) for model in models[1:])]
    found = all_together(backends, requests_of(4))
    assert found == [alone[which][request] for request in range(4) for which in range(3)]
    assert len(set(map(tuple, alone))) == 3
    backends.reverse()
    assert all_together(backends, requests_of(4)) == [alone[2 - which][n] for n in range(4) for which in range(3)]


def test_what_one_has_read_is_not_reused_for_another() -> None:
    base = base_of(torch.float32)
    engine = Engine(base, EngineConfig(cache_block_tokens=8))
    first, second = engine.beside(under_adapter(base, 1)), engine.beside(under_adapter(base, 2))
    for backend in (engine, first, second):
        reused = engine.stats.reused_tokens
        backend.generate(requests_of(1))
        assert engine.stats.reused_tokens == reused
        backend.generate(requests_of(1))
        assert engine.stats.reused_tokens == reused + len(PROMPT) // 8 * 8


def test_a_step_takes_tokens_of_all_models() -> None:
    base = base_of(torch.bfloat16)
    engine = Engine(base)
    backends: list[Engine | Beside] = [engine, *(engine.beside(under_adapter(base, seed)) for seed in range(1, 4))]
    all_together(backends, requests_of(1))
    assert engine.stats.steps <= 14 and engine.stats.generated_tokens == 4 * 12
    assert backends[2].stats == engine.stats and backends[2].runs_in is engine


def test_a_model_that_is_closed_answers_what_it_has_begun_and_is_forgotten() -> None:
    base = base_of(torch.bfloat16)
    engine = Engine(base)
    gone, stays = engine.beside(under_adapter(base, 1)), engine.beside(under_adapter(base, 2))
    alone = gone.generate(requests_of(1))[0].ids
    row, other = gone.submit(requests_of(1)[0]), stays.submit(requests_of(1)[0])
    engine.step()
    gone.close()
    gone.close()
    with pytest.raises(RequestError, match="no longer"):
        gone.submit(requests_of(1)[0])
    while other.finish_reason is None or row.finish_reason is None:
        assert set(engine._models.by_number) >= {0, 2}
        engine.step()
    assert row.completion().ids == alone
    engine.generate(requests_of(1))
    assert set(engine._models.by_number) == set(engine._served) == {0, 2}


def test_a_model_that_nobody_holds_is_forgotten() -> None:
    base = base_of(torch.float32)
    engine = Engine(base)
    engine.beside(under_adapter(base, 1)).generate(requests_of(1))
    gc.collect()
    engine.generate(requests_of(1))
    assert set(engine._models.by_number) == {0}


def test_another_model_is_no_reason_to_forget_but_a_change_is() -> None:
    base = base_of(torch.float32)
    engine = Engine(base, EngineConfig(cache_block_tokens=8))
    before = engine.generate(requests_of(1))[0].ids
    other = engine.beside(under_adapter(base, 1))
    other.generate(requests_of(1))
    engine.generate(requests_of(1))
    assert engine.stats.reused_tokens == len(PROMPT) // 8 * 8
    with torch.no_grad():
        base.layers[0].mlp.up_proj.weight.mul_(-1)
    other.close()
    assert engine.generate(requests_of(1))[0].ids != before
    assert engine.stats.reused_tokens == len(PROMPT) // 8 * 8


def test_models_that_cannot_read_one_cache_are_refused() -> None:
    engine = Engine(base_of(torch.float32))
    with pytest.raises(ConfigError, match="bfloat16"):
        engine.beside(base_of(torch.bfloat16))
    with pytest.raises(ConfigError, match="configs differ"):
        engine.beside(random_decoder(tiny_config(97)))


def test_what_requests_share_is_named_after_their_model_and_their_length() -> None:
    """With dynamic NTK model 1 with 2,100 tokens planned is not model 12 with 100."""
    engine = Engine(random_decoder(replace(tiny_config(97), rope=RopeConfig(kind="dynamic", factor=4.0))))
    salts = [
        engine._salt(Request(prompt_ids=(1,), params=SamplingParams(max_tokens=planned - 1)), model)
        for model in (0, 1, 11, 12, 121)
        for planned in (100, 1000, 1100, 2100, 2121)
    ]
    assert len(set(salts)) == 25
