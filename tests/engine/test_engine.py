"""The engine against transformers, against itself in other batches, and at its limits."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from leveret.engine.config import EngineConfig
from leveret.engine.engine import Engine
from leveret.engine.request import Request, SamplingParams
from leveret.errors import RequestError, WeightsError
from leveret.model.decoder import Decoder

TWIN_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "sliding_window",
    "rms_norm_eps",
)
PROMPTS = [(3, 14, 15, 92), (6,), tuple(range(20, 60)), (5, 35, 89, 79, 32, 38, 46), (26, 43) * 4]


def request(prompt: tuple[int, ...], **params: Any) -> Request:
    return Request(prompt_ids=prompt, params=SamplingParams(**({"max_tokens": 24} | params)))


def uncached_greedy(model: Decoder, prompt: tuple[int, ...], steps: int) -> tuple[int, ...]:
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_greedy_equals_transformers_generate_past_the_sliding_window(decoder: Decoder) -> None:
    transformers = pytest.importorskip("transformers")
    twin = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            **{
                name: getattr(decoder.config, name)
                for name in [
                    "vocab_size",
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "num_key_value_heads",
                    "max_position_embeddings",
                    "sliding_window",
                    "rms_norm_eps",
                ]
            },
            rope_theta=decoder.config.rope.theta,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    weights = {name if name.startswith("lm_head") else f"model.{name}": w for name, w in decoder.state_dict().items()}
    twin.load_state_dict({name: w for name, w in weights.items() if name in twin.state_dict()}, strict=True)
    completions = Engine(decoder).generate([request(prompt, max_tokens=30) for prompt in PROMPTS])
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        with torch.inference_mode():
            whole = twin.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt)),
                max_new_tokens=30,
                do_sample=False,
                pad_token_id=0,
            )
        assert completion.ids == tuple(whole[0, len(prompt) :].tolist())


def test_cached_generation_equals_recomputing_everything_at_each_step(decoder: Decoder) -> None:
    for prompt in PROMPTS:
        [completion] = Engine(decoder).generate([request(prompt)])
        assert completion.ids == uncached_greedy(decoder, prompt, 24)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize("chunk", [1, 3, 16, 17, 64])
def test_the_size_of_prefill_chunks_changes_nothing(decoder: Decoder, chunk: int) -> None:
    alone = [uncached_greedy(decoder, prompt, 24) for prompt in PROMPTS]
    completions = Engine(decoder, EngineConfig(prefill_chunk_tokens=chunk, cache_block_tokens=4)).generate(
        [request(prompt) for prompt in PROMPTS]
    )
    assert [completion.ids for completion in completions] == alone


@pytest.mark.parametrize("max_rows", [1, 2, 5])
def test_a_request_gives_the_same_ids_alone_and_in_a_batch_greedy_and_sampled(decoder: Decoder, max_rows: int) -> None:
    requests = [request(prompt, max_tokens=9 + 5 * i) for i, prompt in enumerate(PROMPTS)]
    requests += [
        request(prompt, temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=i)
        for i, prompt in enumerate(PROMPTS)
    ]
    alone = [Engine(decoder).generate([each])[0] for each in requests]
    assert Engine(decoder, EngineConfig(max_rows=max_rows)).generate(requests) == alone
    assert Engine(decoder, EngineConfig(max_rows=max_rows)).generate(requests[::-1]) == alone[::-1]


def test_requests_that_come_midway_give_the_same_ids(decoder: Decoder) -> None:
    engine = Engine(decoder)
    requests = [request(prompt, max_tokens=6 + 4 * i) for i, prompt in enumerate(PROMPTS)]
    alone = {each.prompt_ids: Engine(decoder).generate([each])[0] for each in requests}
    rows, results, waiting = [engine.submit(requests[0])], {}, requests[1:]
    while not all(row.finish_reason for row in rows):
        for progress in engine.step():
            if progress.completion:
                results[progress.row.request.prompt_ids] = progress.completion
        if waiting:
            rows.append(engine.submit(waiting.pop(0)))
    assert results == alone


def test_long_answers_take_one_block_after_the_other(decoder: Decoder) -> None:
    requests = [request((3, 14, 15), max_tokens=120), request((92, 6), max_tokens=70), request((5,), max_tokens=3)]
    expected = [uncached_greedy(decoder, each.prompt_ids, each.params.max_tokens) for each in requests]
    assert [completion.ids for completion in Engine(decoder).generate(requests)] == expected


def test_a_seed_fixes_the_answer_and_other_seeds_differ(decoder: Decoder) -> None:
    def ids(seed: int | None) -> tuple[int, ...]:
        return Engine(decoder).generate([request((1, 2, 3), temperature=1.0, seed=seed)])[0].ids

    assert ids(5) == ids(5) != ids(6)
    assert ids(None) != ids(None)


def test_a_stop_id_ends_the_answer_and_is_not_part_of_it(decoder: Decoder) -> None:
    free = uncached_greedy(decoder, PROMPTS[0], 24)
    stop = free[10]
    [completion] = Engine(decoder).generate([request(PROMPTS[0], stop_ids=(stop,))])
    assert completion.ids == free[: free.index(stop)]
    assert (completion.finish_reason, completion.stop_id) == ("stop", stop)
    assert completion.num_generated_tokens == free.index(stop) + 1


def test_banned_ids_are_never_chosen(decoder: Decoder) -> None:
    free = uncached_greedy(decoder, PROMPTS[0], 24)
    [completion] = Engine(decoder).generate([request(PROMPTS[0], banned_ids=free[:3])])
    assert not set(completion.ids) & set(free[:3])


class Two:
    """A constraint that allows two ids, then one of them."""

    finished = False

    def __init__(self) -> None:
        self.allowed = [7, 9]

    def allowed_ids(self) -> np.ndarray:
        return np.array(self.allowed)

    def advance(self, token_id: int) -> None:
        self.allowed = [9]


def test_where_every_id_is_banned_nothing_is_made_up(decoder: Decoder) -> None:
    size = decoder.config.vocab_size
    engine = Engine(decoder)
    with pytest.raises(RequestError, match=f"all {size} tokens") as caught:
        engine.generate([request(PROMPTS[0], banned_ids=tuple(range(size)))])
    assert caught.value.param == "banned_ids"
    one = tuple(each for each in range(size) if each != 8)
    assert engine.generate([request(PROMPTS[0], banned_ids=one, max_tokens=2)])[0].ids == (8, 8)
    for banned in ((7, 9), (9,), one):
        asked = dataclasses.replace(request(PROMPTS[0], banned_ids=banned), constraint=Two())
        with pytest.raises(RequestError, match="banned_ids leaves none"):
            engine.generate([asked])
    assert engine.generate([request(PROMPTS[0], max_tokens=2)]) and not engine.stats.running_requests
    with pytest.raises(RequestError) as caught:
        engine.generate([request(PROMPTS[0], banned_ids=(size,))])
    assert caught.value.param == "banned_ids"


def test_watch_sees_every_id_and_can_end_the_answer(decoder: Decoder) -> None:
    seen: list[int] = []

    def watch(token_id: int) -> bool:
        seen.append(token_id)
        return len(seen) == 4

    [completion] = Engine(decoder).generate([dataclasses.replace(request(PROMPTS[0]), watch=watch)])
    assert completion.ids == tuple(seen) == uncached_greedy(decoder, PROMPTS[0], 4)
    assert completion.finish_reason == "stop"


class Sequence:
    """Allows the given sets of ids one after the other, then is finished."""

    def __init__(self, *steps: tuple[int, ...]) -> None:
        self.steps = list(steps)

    @property
    def finished(self) -> bool:
        return not self.steps

    def allowed_ids(self) -> np.ndarray:
        return np.array(self.steps[0], dtype=np.int64)

    def advance(self, token_id: int) -> None:
        assert token_id in self.steps.pop(0)


def test_constraints_are_kept_and_forced_ids_cost_no_step(decoder: Decoder) -> None:
    steps = [(4, 9), (50,), (51,), (52,), (1, 2, 3), (7,)]

    def constrained() -> Request:
        return dataclasses.replace(request(PROMPTS[3]), constraint=Sequence(*steps))

    engine = Engine(decoder)
    row = engine.submit(constrained())
    progress = [engine.step(), engine.step()]
    assert row.finish_reason == "stop" and engine.step() == []
    [[first], [second]] = progress
    assert first.ids[1:] == [50, 51, 52] and second.ids[1:] == [7]
    assert second.completion is not None and second.completion.finish_reason == "stop"
    # The choice after the forced ids is the one the model would make having read them.
    with torch.inference_mode():
        logits = decoder(torch.tensor([[*PROMPTS[3], *first.ids]]))[0, -1]
    assert second.ids[0] == 1 + int(logits[1:4].argmax())
    plain = [request(prompt, max_tokens=12) for prompt in PROMPTS]
    mixed = Engine(decoder).generate([*plain, constrained(), constrained()])
    assert mixed[5].ids == mixed[6].ids == (*first.ids, *second.ids)
    assert [each.ids for each in mixed[:5]] == [uncached_greedy(decoder, prompt, 12) for prompt in PROMPTS]


def test_forced_ids_stop_at_max_tokens(decoder: Decoder) -> None:
    limited = dataclasses.replace(request((1,), max_tokens=3), constraint=Sequence(*[(5,)] * 10))
    [completion] = Engine(decoder).generate([limited])
    assert completion.ids == (5, 5, 5) and completion.finish_reason == "length"


def test_a_prompt_and_answer_may_fill_the_context_but_not_pass_it(decoder: Decoder) -> None:
    engine = Engine(decoder)
    [full] = engine.generate([request(tuple(range(90)), max_tokens=38)])
    assert len(full.ids) == 38
    with pytest.raises(RequestError, match=r"90 tokens and max_tokens is 39: together 129, .* holds 128") as caught:
        engine.generate([request((1,)), request(tuple(range(90)), max_tokens=39)])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "max_tokens"


@pytest.mark.parametrize("prompt", [(), (97,), (-1,)])
def test_prompts_that_are_empty_or_foreign_are_refused(decoder: Decoder, prompt: tuple[int, ...]) -> None:
    with pytest.raises(RequestError):
        Engine(decoder).submit(request(prompt))


def test_cancelled_rows_leave_and_the_others_go_on(decoder: Decoder) -> None:
    engine = Engine(decoder)
    rows = [engine.submit(request(prompt, max_tokens=8)) for prompt in PROMPTS]
    engine.step()
    engine.cancel(rows[2])
    results = {}
    while engine.stats.running_requests:
        results |= {each.row: each.completion for each in engine.step() if each.completion}
    assert rows[2] not in results and rows[2].completion().finish_reason == "cancelled"
    for index in (0, 1, 3, 4):
        assert results[rows[index]].ids == uncached_greedy(decoder, PROMPTS[index], 8)


def test_stream_yields_the_ids_of_generate(decoder: Decoder) -> None:
    engine = Engine(decoder)
    assert tuple(engine.stream(request(PROMPTS[2]))) == engine.generate([request(PROMPTS[2])])[0].ids


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -1.0),
        ("repetition_penalty", 0.0),
        ("stop", ("",)),
    ],
)
def test_params_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


class Breaking(Sequence):
    """A constraint with a mistake in it: nothing is allowed."""

    def allowed_ids(self) -> np.ndarray:
        return np.empty(0, dtype=np.int64)


def test_a_row_that_goes_wrong_ends_alone(decoder: Decoder, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(decoder)
    good = engine.submit(request((3, 1), max_tokens=8))
    broken = engine.submit(dataclasses.replace(request((4,), temperature=1.0), constraint=Breaking()))
    watched = engine.submit(dataclasses.replace(request((5,)), watch=lambda token_id: bool(1 // 0)))
    ended = {each.row for _ in range(9) for each in engine.step() if each.row.finish_reason}
    assert ended == {good, broken, watched}
    assert good.completion().ids == uncached_greedy(decoder, (3, 1), 8)
    assert isinstance(watched.error, ZeroDivisionError) and "ZeroDivisionError" in caplog.text
    with pytest.raises(type(broken.error)):
        broken.completion()
    stats = engine.stats
    assert (stats.running_requests, stats.used_tokens) == (0, 0)
    assert (stats.finished_requests, stats.cancelled_requests) == (1, 2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_computes_no_numbers_gives_an_error_and_no_answer(
    decoder: Decoder, value: float, temperature: float, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = copy.deepcopy(decoder)
    with torch.no_grad():
        damaged.norm.weight[0] = value
    with pytest.raises(WeightsError, match="infinite or no numbers"):
        Engine(damaged).generate([request((3, 1), temperature=temperature)])
    assert not caplog.text
