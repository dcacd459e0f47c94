"""Log probabilities over HTTP: both shapes, whole and streamed, echoed and ranked, against the model's own logits."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import torch

from leveret.engine.assembler import TextAssembler
from leveret.engine.reply import TextAnswer
from leveret.engine.text import TextModel
from leveret.engine.token_score import TokenScore
from leveret.serve import wire
from leveret.serve.probabilities import shown, text_logprobs

from .test_openai_client import tools

USER: dict[str, Any] = {"role": "user", "content": "明天早上七点半叫我起床"}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 20}


def by_hand(model: TextModel, ids: list[int]) -> torch.Tensor:
    """Log probabilities (T, V) after each id."""
    with torch.no_grad():
        return model.model(torch.tensor([ids]))[0].float().log_softmax(-1)


def test_a_chats_scores_are_the_models_and_spell_its_answer(client: openai.OpenAI, model: TextModel) -> None:
    response = client.chat.completions.create(
        model="phone", messages=[USER], logprobs=True, top_logprobs=3, temperature=1.2, seed=4, max_tokens=20
    )
    [choice] = response.choices
    assert choice.logprobs is not None and choice.logprobs.content
    entries = choice.logprobs.content
    spelled = b"".join(bytes(each.bytes or ()) for each in entries).decode("utf-8", "replace")
    special = set(model.tokenizer.special_ids)
    assert "".join(each.token for each in entries if each.token in special) or spelled == choice.message.content
    prompt = list(model.prepare_chat([USER]).request.prompt_ids)
    job = model.prepare_chat([USER], temperature=1.2, seed=4, max_tokens=20)
    [completion] = model.engine.generate([job.request])
    expected = by_hand(model, [*prompt, *completion.ids])[len(prompt) - 1 :]
    for place, (token_id, entry) in enumerate(zip(completion.ids, entries, strict=True)):
        assert entry.logprob == pytest.approx(expected[place, token_id].item(), abs=1e-3)
        assert entry.token == shown(model.tokenizer.bytes_of(token_id, skip_special=False))
        best = expected[place].topk(3).values.tolist()
        assert [each.logprob for each in entry.top_logprobs] == pytest.approx(best, abs=1e-3)


def test_streamed_scores_add_up_to_the_whole_ones(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "phone", "messages": [USER], "logprobs": True, "top_logprobs": 2, **GREEDY}
    whole = client.chat.completions.create(**request).choices[0]
    entries, text = [], ""
    for chunk in client.chat.completions.create(**request, stream=True):
        scores = chunk.choices[0].logprobs
        entries += (scores.content if scores else None) or []
        text += chunk.choices[0].delta.content or ""
    assert whole.logprobs is not None and entries == whole.logprobs.content and text == whole.message.content
    silent = client.chat.completions.create(model="phone", messages=[USER], logprobs=False, **GREEDY).choices[0]
    assert silent.logprobs is None and silent.message.content == text


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_the_tokens_of_tool_calls_have_scores_too(client: openai.OpenAI, model: TextModel, choice: Any) -> None:
    request: dict[str, Any] = {"model": "phone", "messages": [USER], "tools": tools(model), "tool_choice": choice}
    request |= {"logprobs": True, "top_logprobs": 2, "temperature": 0, "max_tokens": 60}
    whole = client.chat.completions.create(**request).choices[0]
    job = model.prepare_chat([USER], tools="all", tool_choice=choice, temperature=0, max_tokens=60)
    [completion] = model.engine.generate([job.request])
    assert whole.logprobs is not None and whole.logprobs.content
    expected = [shown(model.tokenizer.bytes_of(token_id, skip_special=False)) for token_id in completion.ids]
    assert [each.token for each in whole.logprobs.content] == expected
    assert choice == "auto" or whole.message.tool_calls
    prompt = list(job.request.prompt_ids)
    scores = by_hand(model, [*prompt, *completion.ids])[len(prompt) - 1 :]
    chosen = [
        (place, entry)
        for place, entry in enumerate(whole.logprobs.content)
        if entry.top_logprobs  # the others were forced
    ]
    assert chosen
    for place, entry in chosen:
        assert entry.logprob == pytest.approx(scores[place, completion.ids[place]].item(), abs=1e-3)
    entries = []
    for chunk in client.chat.completions.create(**request, stream=True):
        fresh = chunk.choices[0].logprobs
        entries += (fresh.content if fresh else None) or []
    assert entries == whole.logprobs.content


def test_a_completions_scores_whole_and_streamed(client: openai.OpenAI, model: TextModel) -> None:
    request: dict[str, Any] = {"model": "phone", "prompt": "Set a", "logprobs": 2, **GREEDY}
    [choice] = client.completions.create(**request).choices
    scores = choice.logprobs
    assert scores is not None and scores.tokens and scores.text_offset and scores.top_logprobs
    assert scores.text_offset[0] == 0 and scores.text_offset == sorted(scores.text_offset)
    for token, logprob, alternatives in zip(
        scores.tokens, scores.token_logprobs or (), scores.top_logprobs, strict=True
    ):
        assert 2 <= len(alternatives) <= 3 and alternatives[token] == logprob == max(alternatives.values())
    parts: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in client.completions.create(**request, stream=True):
        if (fresh := chunk.choices[0].logprobs) is not None:
            for name, values in parts.items():
                values += getattr(fresh, name)
    assert parts == scores.model_dump()


def test_an_echoed_prompt_is_scored_as_evaluators_need_it(client: openai.OpenAI, model: TextModel) -> None:
    """The call by which lm-eval reads the likelihood of a text: its ids, echo, one token to throw away."""
    ids = model.tokenizer.encode("Set a timer 明天早上")
    for max_tokens in (0, 1):
        response = client.completions.create(
            model="phone", prompt=[ids], max_tokens=max_tokens, temperature=0, logprobs=1, echo=True
        )
        [choice] = response.choices
        scores = choice.logprobs
        assert scores is not None and scores.token_logprobs is not None
        assert choice.text.startswith("Set a timer 明天早上")
        expected = by_hand(model, ids)
        assert scores.token_logprobs[0] is None and len(scores.token_logprobs) == len(ids) + max_tokens
        for place, token_id in enumerate(ids[1:]):
            assert scores.token_logprobs[place + 1] == pytest.approx(expected[place, token_id].item(), abs=1e-3)
        assert response.usage is not None and response.usage.completion_tokens == max_tokens
    assert scores.text_offset is not None and scores.text_offset[-1] == len("Set a timer 明天早上")


def test_an_echo_is_streamed_first(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "phone", "prompt": ["Set a", "明天"], "echo": True, "n": 2, "seed": 1}
    request |= {"temperature": 1.0, "max_tokens": 5}
    for logprobs in (None, 1):
        whole = [each.text for each in client.completions.create(**request, logprobs=logprobs).choices]
        texts = ["", "", "", ""]
        for chunk in client.completions.create(**request, logprobs=logprobs, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == whole and all(text.startswith(("Set a", "明天")) for text in whole)


def test_the_scores_of_a_prompt_are_written_once_for_all_its_choices(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[int] = []
    write = wire.text_logprobs

    def counted(*args: Any, **keys: Any) -> Any:
        prompts.append(len(keys.get("prompt", ())))
        return write(*args, **keys)

    monkeypatch.setattr(wire, "text_logprobs", counted)
    request: dict[str, Any] = {"model": "phone", "prompt": ["Set a", "明天"], "echo": True, "logprobs": 1, **GREEDY}
    alone = client.completions.create(**request).choices
    assert sum(map(bool, prompts)) == 2
    several = client.completions.create(**request, n=3).choices
    assert sum(map(bool, prompts)) == 4
    for index, choice in enumerate(several):
        one, other = choice.logprobs, alone[index // 3].logprobs
        assert one is not None and other is not None and choice.text == alone[index // 3].text
        assert (one.tokens, one.text_offset) == (other.tokens, other.text_offset)
        assert (one.token_logprobs or ())[1:] == pytest.approx((other.token_logprobs or ())[1:], abs=1e-3)


def test_the_best_of_several_answers_are_given_back_and_all_are_counted(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "phone", "prompt": "Set a", "temperature": 1.5, "seed": 3, "max_tokens": 12}
    every = client.completions.create(**request, n=5, logprobs=0)

    def mean(choice: Any) -> float:
        logprobs = choice.logprobs.token_logprobs
        return sum(logprobs) / len(logprobs) if logprobs else float("-inf")

    ranked = [each.text for each in sorted(every.choices, key=mean, reverse=True)]
    best = client.completions.create(**request, n=2, best_of=5)
    assert [each.text for each in best.choices] == ranked[:2]
    assert [each.index for each in best.choices] == [0, 1] and best.choices[0].logprobs is None
    assert best.usage == every.usage


def test_penalties_and_biases_change_answers_as_the_model_in_python(client: openai.OpenAI, model: TextModel) -> None:
    plain = client.completions.create(model="phone", prompt="Set a", **GREEDY).choices[0].text
    options: list[dict[str, Any]] = [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"logit_bias": {"65": 100}},
        {"extra_body": {"repetition_penalty": 3.0}},
    ]
    for each in options:
        text = client.completions.create(model="phone", prompt="Set a", **GREEDY, **each).choices[0].text
        given = {**each.get("extra_body", {}), **{key: value for key, value in each.items() if key != "extra_body"}}
        if "logit_bias" in given:
            given["logit_bias"] = {65: 100}
        assert text == model.generate("Set a", **GREEDY, **given)
        assert text != plain or "penalty" in str(each)


def test_bytes_of_a_part_of_a_character_stay_apart() -> None:
    assert shown("明".encode()) == "明"
    assert shown("明".encode()[:1]) == "bytes:\\xe6" and shown("明".encode()[1:]) == "bytes:\\x98\\x8e"


def test_what_follows_half_a_character_has_its_place_behind_it(model: TextModel) -> None:
    tokenizer = model.tokenizer
    half, rest, letter = (
        next(index for index in range(256) if tokenizer.token_bytes(index) == data) for data in (b"\xe6", b"\x98", b"a")
    )
    ids = [letter, half, letter, half, rest, half, letter]
    scores = [TokenScore(id=index, logprob=-1.0) for index in ids]
    expected = [0, 1, 2, 3, 3, 4, 5]
    assert text_logprobs((), tokenizer, prompt=scores)["text_offset"] == expected
    answer = TextAnswer(assembler=TextAssembler(tokenizer))
    for score in scores:
        answer.record(score)
        answer.watch(score.id)
    placed = [each.start for delta in answer.drain() for each in delta.scores]
    assert placed == expected
