"""Single tokens from fixed buffers: what a CUDA graph records, run here with a function in the place of the graph."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from leveret.engine.config import EngineConfig
from leveret.engine.engine import Engine
from leveret.engine.graphs import (
    Capture,
    CudaCapture,
    DecodeGraphs,
    StaticStep,
    capture_for,
    difference,
    refusal,
)
from leveret.engine.request import Request, SamplingParams
from leveret.engine.runner import Runner
from leveret.model.config import ModelConfig, MoeConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.lora import LoraSettings
from leveret.model.lora_targets import add_lora
from leveret.model.paged_cache import Feed, PagedCache
from leveret.model.static_rows import StaticBuffers
from leveret.precision.int8 import Int8Linear

from .conftest import random_decoder, tiny_config
from .test_beside import all_together, base_of, under_adapter

CPU = torch.device("cpu")
PROMPTS = [(3, 14, 15, 92), (6,), tuple(range(20, 60)), (5, 35, 89, 79, 32, 38, 46), (26, 43) * 4, tuple(range(20, 51))]


class Recalled(Capture):
    """In the place of a graph: the function itself, on the same buffers."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.recorded = self.replayed = 0

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            step()

        return replay


class Frozen(Recalled):
    """A graph that did not record where its numbers lie but what they were."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        super().record(step)()
        return lambda: None


class Unable(Recalled):
    """Nothing can be recorded."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        super().record(step)
        raise RuntimeError("operation not permitted when stream is capturing")


class Breaking(Recalled):
    """Goes well for a while."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        replay = super().record(step)

        def breaking() -> None:
            if self.replayed == 5:
                raise RuntimeError("out of memory")
            replay()

        return breaking


def engine_with(monkeypatch: pytest.MonkeyPatch, capture: Capture | None, model: Decoder, **config: Any) -> Engine:
    monkeypatch.setattr("leveret.engine.engine.capture_for", lambda _: capture)
    return Engine(model, EngineConfig(**({"speculation": None, "cache_block_tokens": 4} | config)))


def requests_of(**params: Any) -> list[Request]:
    """Answers of different lengths, so that rows leave one after the other; the last two prompts begin alike."""
    return [
        Request(prompt_ids=prompt, params=SamplingParams(max_tokens=10 + 9 * number, **params))
        for number, prompt in enumerate(PROMPTS)
    ]


def answers(engine: Engine, requests: list[Request]) -> list[tuple[int, ...]]:
    return [completion.ids for completion in engine.generate(requests)]


CONFIGS = {
    "window": tiny_config(97, max_position_embeddings=128, sliding_window=16),
    "no window": tiny_config(97, max_position_embeddings=128),
    "dynamic": replace(
        tiny_config(97, max_position_embeddings=128),
        rope=RopeConfig(kind="dynamic", factor=4.0, original_max_position_embeddings=16),
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_buffers_give_the_logits_and_the_cache_of_a_step_by_the_modules(config: ModelConfig) -> None:
    model, capture = random_decoder(config), Recalled()
    plain = Runner({0: model}, num_blocks=60, block_tokens=4)
    static = Runner({0: model}, num_blocks=60, block_tokens=4, capture=capture)
    lengths = [13, 1, 3, 40, 8]
    tables = [list(range(1 + 12 * row, 13 + 12 * row)) for row in range(5)]
    for runner in (plain, static):
        runner.cache.clear(range(61))
        prompts = [
            Feed(ids=[(7 * row + place) % 97 for place in range(length)], start=0, table=table, planned_length=48)
            for row, (length, table) in enumerate(zip(lengths, tables, strict=True))
        ]
        runner(prompts, [1] * 5)
    assert capture.replayed == 0
    for step in range(7):  # over the ends of blocks, and over 8 blocks, the width of the smallest graph
        rows = range(5) if step < 4 else (3, 0, 4)
        feeds = [
            Feed(ids=[(step + row) % 97], start=lengths[row] + step, table=tables[row], planned_length=48)
            for row in rows
        ]
        torch.testing.assert_close(static(feeds, [1] * len(feeds)), plain(feeds, [1] * len(feeds)))
        torch.testing.assert_close(static.cache._pool[:, :, :61], plain.cache._pool)
    assert capture.replayed == 7


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("temperature", [0, 1])
def test_answers_are_those_of_the_engine_without_graphs(
    config: ModelConfig, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, capture = random_decoder(config), Recalled()
    requests = requests_of(temperature=temperature, seed=3)
    expected = answers(engine_with(monkeypatch, None, model), requests)
    engine = engine_with(monkeypatch, capture, model)
    assert answers(engine, requests) == expected
    assert 3 <= capture.recorded < capture.replayed and not capture.given_up  # of 8, 4, 2 and 1 rows
    recorded = capture.recorded
    assert answers(engine, requests) == expected  # now from prefixes that were read before
    assert engine.stats.reused_tokens > 0 and capture.recorded <= recorded + 2


def test_answers_are_the_same_after_preemptions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, capture = random_decoder(CONFIGS["no window"]), Recalled()
    requests = requests_of()
    expected = answers(engine_with(monkeypatch, None, model), requests)
    engine = engine_with(monkeypatch, capture, model, cache_block_tokens=8)
    engine._num_blocks = 16
    engine._scheduler = engine._new_scheduler()
    assert answers(engine, requests) == expected
    assert engine.stats.preemptions > 0 and capture.replayed > 20 and not capture.given_up


def test_guesses_and_prompts_between_single_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, capture = random_decoder(CONFIGS["window"]), Recalled()
    requests = requests_of()
    expected = answers(engine_with(monkeypatch, None, model), requests)
    engine = engine_with(monkeypatch, capture, model, speculation="lookup", prefill_chunk_tokens=4)
    assert answers(engine, requests) == expected
    assert engine.stats.accepted_tokens > 0 and capture.replayed > 0 and not capture.given_up


def test_adapters_have_graphs_of_their_own_which_go_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    base, capture = base_of(torch.float32), Recalled()
    one, two = under_adapter(base, 1), under_adapter(base, 2)
    requests = [replace(request, params=SamplingParams(max_tokens=12)) for request in requests_of()[:3]]
    engine = engine_with(monkeypatch, None, base)
    expected = all_together([engine, engine.beside(one), engine.beside(two)], requests)
    engine = engine_with(monkeypatch, capture, base)
    beside = [engine.beside(one), engine.beside(two)]
    assert all_together([engine, *beside], requests) == expected
    assert {key[0] for key in graphs_of(engine)._steps} == {0, 1, 2} and not capture.given_up
    beside[0].close()
    answers(engine, requests)
    assert {key[0] for key in graphs_of(engine)._steps} == {0, 2}


def test_weights_that_change_between_requests_drop_the_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, capture = random_decoder(CONFIGS["window"]), Recalled()
    requests = requests_of()
    engine = engine_with(monkeypatch, capture, model)
    before, old, recorded = answers(engine, requests), graphs_of(engine), capture.recorded
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    after = answers(engine, requests)
    assert after != before and after == answers(engine_with(monkeypatch, None, model), requests)
    assert graphs_of(engine) is not old and capture.recorded > recorded


@pytest.mark.parametrize(
    ("kind", "said", "recorded"),
    [(Frozen, "a logit differs by", 1), (Unable, "RuntimeError: operation not", 1), (Breaking, "out of memory", 1)],
)
def test_a_graph_that_fails_is_told_once_and_answers_stay_right(
    kind: type[Recalled],
    said: str,
    recorded: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, capture = random_decoder(CONFIGS["window"]), kind()
    requests = requests_of()
    expected = answers(engine_with(monkeypatch, None, model), requests)
    engine = engine_with(monkeypatch, capture, model)
    with caplog.at_level(logging.WARNING):
        assert answers(engine, requests) == expected
        with torch.no_grad():
            model.norm.weight.mul_(1.0)  # a new runner
        assert answers(engine, requests) == expected
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("CUDA graphs are off") and said in warning
    assert capture.given_up and capture.recorded == recorded and not graphs_of(engine)._steps


def test_on_a_cpu_nothing_of_it_is_built(decoder: Decoder) -> None:
    engine = Engine(decoder)
    engine.generate(requests_of()[:1])
    assert capture_for(CPU) is None and engine._capture is None
    assert isinstance(engine._runner, Runner) and engine._runner._graphs is None
    assert engine._runner.cache._pool.shape[2] == engine._num_blocks + 1


@pytest.mark.parametrize("key", [{"cuda_graphs": False}, {"batch_invariant": True}])
def test_they_can_be_switched_off(key: dict[str, bool], decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with(monkeypatch, capture := Recalled(), decoder, **key)
    engine.generate(requests_of()[:2])
    assert capture.recorded == 0


def test_models_that_were_not_read_through_are_refused_by_name(decoder: Decoder) -> None:
    def why(model: Decoder) -> str | None:
        return refusal(model, PagedCache(model.config, 2, 4))

    assert why(decoder) is None
    model = random_decoder(CONFIGS["window"])
    assert why(model.train()) == "it is being trained"
    handle = model.eval().layers[1].register_forward_hook(lambda *_: None)
    assert why(model) == "layers.1 has a hook"
    handle.remove()
    model.layers[0].mlp.up_proj = Int8Linear.from_linear(torch.nn.Linear(32, 48, bias=False), group_size=None)
    assert why(model) == "layers.0.mlp.up_proj is a Int8Linear"
    mixture = random_decoder(replace(CONFIGS["window"], moe=MoeConfig(num_experts=4, experts_per_token=2)))
    assert why(mixture) == "layers.0.mlp is a SparseMixture"
    assert "on meta, the cache on cpu" in str(why(random_decoder(CONFIGS["window"]).to("meta")) or "")


def test_a_mixture_is_served_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_decoder(replace(CONFIGS["window"], moe=MoeConfig(num_experts=4, experts_per_token=2)))
    expected = answers(engine_with(monkeypatch, None, model), requests_of())
    engine = engine_with(monkeypatch, capture := Recalled(), model)
    assert answers(engine, requests_of()) == expected
    assert capture.recorded == 0 and not capture.given_up


def test_a_difference_is_measured_by_the_largest_logit() -> None:
    expected = torch.tensor([[1.0, -100.0]])
    assert difference(expected + 0.09, expected) is None
    assert "differs by 0.2" in str(difference(expected + 0.2, expected))
    assert "differs by nan" in str(difference(expected * torch.nan, expected))
    assert difference((expected + 4).bfloat16(), expected.bfloat16()) is None


class Operators(TorchDispatchMode):
    """Notes what is computed, and on which devices its tensors are."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.names.add(str(function))
        self.devices |= {
            leaf.device.type for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, torch.Tensor)
        }
        return found


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dora", [None, False, True])
@torch.inference_mode()
def test_a_step_reads_nothing_back_and_brings_nothing_from_the_cpu(config: ModelConfig, dora: bool | None) -> None:
    """Shapes without numbers take the way of a GPU, past the compiled kernels, and cannot answer what a number is."""
    model = random_decoder(config).bfloat16()
    if dora is not None:
        add_lora(model, LoraSettings(rank=2, alpha=4, dora=dora), ["q_proj", "down_proj"], seed=1)
    model.eval().to("meta")
    cache = PagedCache(config, 20, 4, torch.bfloat16, "meta")
    assert refusal(model, cache) is None
    buffers = StaticBuffers(cache, num_rows=4, num_blocks=8, spare=20)
    step = StaticStep(model, buffers, torch.empty(4, 97, dtype=torch.bfloat16, device="meta"))
    step.run()  # the angles' frequencies come to the device
    with Operators() as seen:
        step.run()
    assert seen.devices == {"meta"} and "aten.index_put_.default" in seen.names
    assert not {
        name for name in seen.names if any(word in name for word in ("local_scalar", "nonzero", "lift", "unique"))
    }


class FakeCuda:
    """So much of torch.cuda that `CudaCapture` goes through its motions: the current stream, and what is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.streams = ["the caller's"]
        self.calls: list[str] = []
        self.pools: list[object] = []
        true_signature = inspect.signature(torch.cuda.graph.__init__)

        @contextmanager
        def stream(wanted: SimpleNamespace) -> Iterator[None]:
            self.streams.append(wanted.name)
            try:
                yield
            finally:
                self.streams.pop()

        @contextmanager
        def graph(*args: Any, **kwargs: Any) -> Iterator[None]:
            given = true_signature.bind(None, *args, **kwargs).arguments
            assert given["stream"].name == self.streams[-1] and given["capture_error_mode"] == "thread_local"
            self.pools.append(given["pool"])
            self.calls.append("record")
            yield

        def a_stream(name: str) -> SimpleNamespace:
            return SimpleNamespace(name=name, wait_stream=lambda other: self.calls.append(f"{name} after {other.name}"))

        fake = self

        class Graph:
            def pool(self) -> str:
                return "the pool"

            def replay(self) -> None:
                fake.calls.append("replay")

        for name, stand_in in (
            ("device", lambda _: nullcontext()),
            ("stream", stream),
            ("graph", graph),
            ("CUDAGraph", Graph),
            ("Stream", lambda: a_stream("side")),
            ("current_stream", lambda: a_stream(self.streams[-1])),
        ):
            monkeypatch.setattr(torch.cuda, name, stand_in)


def test_recording_is_done_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, capture = FakeCuda(monkeypatch), CudaCapture(torch.device("cuda:0"))
    replay = capture.record(lambda: fake.calls.append(f"step on {fake.streams[-1]}"))
    step = "step on side"
    assert fake.calls == ["side after the caller's", step, step, "record", step, "the caller's after side"]
    replay()
    assert fake.calls[-1] == "replay"
    again = capture.record(lambda: None)
    assert fake.pools == [None, "the pool"]
    del replay, again
    capture.record(lambda: None)
    assert fake.pools[-1] is None  # the one before is gone, and its pool with it


def test_the_callers_stream_is_back_when_recording_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, capture = FakeCuda(monkeypatch), CudaCapture(torch.device("cuda:0"))

    def fails() -> None:
        raise RuntimeError("not while capturing")

    with pytest.raises(RuntimeError, match="not while capturing"):
        capture.record(fails)
    assert fake.streams == ["the caller's"] and not capture._one_at_a_time.locked()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CudaCapture cannot record anything")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graphs_answer_as_the_modules_do(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    model = random_decoder(CONFIGS["window"]).to("cuda", dtype)
    engine = Engine(model, EngineConfig(speculation=None, cache_block_tokens=4))
    found = answers(engine, requests_of())
    assert not caplog.records and len(graphs_of(engine)._steps) >= 3
    plain = Engine(model, EngineConfig(speculation=None, cache_block_tokens=4, cuda_graphs=False))
    if dtype == torch.float32:
        assert found == answers(plain, requests_of())


def graphs_of(engine: Engine) -> DecodeGraphs:
    assert isinstance(engine._runner, Runner) and engine._runner._graphs is not None
    return engine._runner._graphs
