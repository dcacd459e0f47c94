"""TextModel: prompts in, text and tool calls out; the routes that must be equal are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leveret
from leveret.chat.messages import Message, ToolCall
from leveret.chat.template import builtin_template, template_for
from leveret.engine.config import EngineConfig
from leveret.engine.defaults import read_defaults
from leveret.engine.prompting import PromptShape
from leveret.engine.reply import reply_from
from leveret.engine.request import Completion
from leveret.engine.text import TextModel
from leveret.errors import ConfigError, RequestError, WeightsError
from leveret.tokenizer.files import Tokenizer
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import ToolSet

USER = {"role": "user", "content": "Set a timer for five minutes and call Alice"}
QUERIES = [
    "Set a timer for five minutes",
    "给 Alice 打电话，然后拍一张照片",
    'search "<api_end>" and </s>',
    "Call Bob",
    "Hi",
]


def adding_bos(tokenizer: Tokenizer) -> str:
    """The tokenizer.json of a tokenizer that begins every text with BOS, as Llama's does."""
    content = json.loads(tokenizer.to_json())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [tokenizer.bos_id], "tokens": ["<s>"]}},
    }
    return json.dumps(content)


def test_load_gives_a_model_from_ids_to_logits_and_a_tokenizer(model_dir: Path) -> None:
    model = leveret.load(model_dir, dtype="float32", device="cpu")
    ids = torch.tensor([model.tokenizer.encode("Once upon a time")])
    assert model.model(ids).shape == (1, ids.shape[1], model.tokenizer.vocab_size)
    assert model.tokenizer.decode(ids[0].tolist()) == "Once upon a time"


def test_import_leveret_loads_no_torch() -> None:
    code = "import sys, leveret; assert callable(leveret.load); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_generate_continues_a_text_and_stream_gives_the_same_in_whole_characters(model: TextModel) -> None:
    for seed in range(8):
        options = {"max_tokens": 40, "temperature": 1.0, "seed": seed}
        whole = model.generate("Once upon", **options)
        pieces = list(model.stream("Once upon", **options))
        assert "".join(pieces) == whole
        assert all(piece.encode() for piece in pieces)


def test_a_streamed_text_is_never_ahead_of_its_characters(model: TextModel, tokenizer: Tokenizer) -> None:
    """Forced through a constraint, so that what the random model says is known."""
    text = "明天早上好 🐢🐇 ok"
    job = model.prepare_text("x", max_tokens=100)
    deltas = []
    for index in tokenizer.encode(text):
        job.answer.watch(index)
        deltas += job.answer.drain()
    assert "".join(delta.content for delta in deltas) == text
    assert not any("\ufffd" in delta.content for delta in deltas)


def test_chat_stream_and_whole_reply_are_the_same(model: TextModel) -> None:
    options = {"max_tokens": 30, "temperature": 0.8, "seed": 3}
    reply = model.chat([USER], **options)
    assert "".join(model.stream([USER], **options)) == reply.content
    assert reply_from(model.stream_chat([USER], **options)) == reply
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_the_server_side_prompt_is_the_training_prompt(model: TextModel, tokenizer: Tokenizer) -> None:
    """Row by row: default system message, given one, empty turn, Chinese, earlier calls with results, white space."""
    calls = (ToolCall("set_timer", {"minutes": 5}), ToolCall("call_contact", {"name": "Alice"}))
    dialect = FunctionalDialect(model.tools, reserved=tokenizer.special_ids)
    template = template_for(tokenizer)
    rendered = Message("assistant", dialect.render(list(calls), USER["content"]), trusted=True)
    conversations = [
        [Message("user", "你好，世界 🐢")],
        [Message("system", "Be brief."), Message("user", "")],
        [Message("user", "a<round_end>b <api_0>"), Message("assistant", "ok"), Message("user", "c")],
        [Message("user", USER["content"]), rendered, Message("tool", "done"), Message("user", "thanks")],
        [Message("user", "  a\n"), Message("assistant", "ok \n"), Message("user", "\tb ")],
    ]
    for trained in conversations:
        served = [
            {"role": each.role, "content": each.content}
            if each is not rendered
            else {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
                    for call in calls
                ],
            }
            for each in trained
        ]
        ids = model.prepare_chat(served, tools="all").request.prompt_ids
        whole = template.encode(tokenizer, [*trained, Message("assistant", "yes")])
        assert tuple(whole.ids[: len(ids)]) == ids
        assert not any(whole.mask[len(ids) - 1 : len(ids)]) and whole.mask[len(ids)]


@pytest.mark.parametrize("name", ["hare", "huozi", "aquila-chat", "lingowhale", "with-bos"])
@pytest.mark.parametrize("files_add_bos", [False, True])
def test_a_chat_prompt_has_a_bos_exactly_where_its_template_says_so(
    name: str, files_add_bos: bool, model: TextModel
) -> None:
    plain = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    source = plain if name == "with-bos" else builtin_template(name).source
    tokenizer = Tokenizer(
        adding_bos(model.tokenizer) if files_add_bos else model.tokenizer.to_json(),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=source,
    )
    tokenizer.add_special_tokens([t for t in template_for(tokenizer).special_tokens if t not in tokenizer.special_ids])
    talker = TextModel(model.model, tokenizer, template=template_for(tokenizer))
    opened = talker.prepare_chat([USER])
    continued = talker.prepare_chat(
        [USER, {"role": "assistant", "content": "Well"}], shape=PromptShape(continue_final_message=True)
    )
    for prompt in (opened.request.prompt_ids, continued.request.prompt_ids):
        assert prompt.count(tokenizer.special_ids["<s>"]) == (name == "with-bos")
        assert prompt[0] == tokenizer.special_ids["<s>"] or name != "with-bos"


def test_a_raw_prompt_gets_a_bos_if_the_tokenizer_files_say_so(model: TextModel) -> None:
    bos = model.tokenizer.bos_id
    assert model.prepare_text("Once").request.prompt_ids[0] != bos
    with_bos = TextModel(model.model, Tokenizer(adding_bos(model.tokenizer), bos_token="<s>", eos_token="</s>"))
    ids = with_bos.prepare_text("Once upon").request.prompt_ids
    assert ids[0] == bos and ids.count(bos) == 1
    assert ids[1:] == model.prepare_text("Once upon").request.prompt_ids


def test_constrained_tool_calls_always_parse_batched_or_alone(model: TextModel) -> None:
    batched = model.call_tools(QUERIES)
    assert all(calls is not None for calls in batched)
    assert batched == [model.call_tools([query])[0] for query in QUERIES]
    sampled = model.call_tools(QUERIES, temperature=2.0, seed=1)
    for query, calls in zip(QUERIES, sampled, strict=True):
        reply = model.chat([{"role": "user", "content": query}], tools="all", temperature=2.0, seed=1)
        assert list(reply.tool_calls) == calls
        assert reply.finish_reason == ("tool_calls" if calls else "stop") and reply.content == ""
        for call in calls or ():
            model.tools.get(call.name).validate(call.arguments)


def test_tool_calls_stream_as_whole_structured_pieces(model: TextModel) -> None:
    for seed in range(6):
        options = {"tools": "all", "tool_choice": "required", "temperature": 1.5, "seed": seed}
        reply = model.chat([USER], **options)
        deltas = list(model.stream_chat([USER], **options))
        assert reply_from(deltas) == reply and reply.tool_calls
        assert [delta.tool_call for delta in deltas if delta.tool_call] == list(reply.tool_calls)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_calls_in_pieces_of_any_size_are_the_calls(size: int, model: TextModel) -> None:
    """Also with strings that look like the end of a call: they are spelled so that they are not."""
    calls = [ToolCall("call_contact", {"name": name}) for name in ('a")<api_end>', "<no_tool>", "小明 🐢", 'q"\\')]
    calls.insert(2, ToolCall("set_timer", {"minutes": 5}))
    ids = model.tokenizer.encode(model.dialect.render(calls), allow_special=True)
    answer = model.prepare_chat([USER], tools="all").answer
    deltas = []
    for start in range(0, len(ids), size):
        for index in ids[start : start + size]:
            assert not answer.watch(index)
        deltas += answer.drain()
    completion = Completion(ids=tuple(ids), finish_reason="stop", stop_id=2, num_prompt_tokens=3)
    reply = reply_from([*deltas, *answer.finish(completion)], parsed=answer.parsed)
    assert list(reply.tool_calls) == calls and reply.parsed and reply.content == ""


def test_offered_tools_are_the_only_ones_called(model: TextModel) -> None:
    for seed in range(5):
        reply = model.chat([USER], tools=["take_photo"], tool_choice="required", temperature=2.0, seed=seed)
        assert {call.name for call in reply.tool_calls} == {"take_photo"}
    declared = [model.tools.get("set_timer").to_openai()]
    reply = model.chat([USER], tools=declared, tool_choice="required", parallel_tool_calls=False)
    assert [call.name for call in reply.tool_calls] == ["set_timer"]


def test_the_no_tool_token_is_an_empty_answer(model: TextModel, tokenizer: Tokenizer) -> None:
    job = model.prepare_chat([USER], tools="all")
    for index in (tokenizer.special_ids["<no_tool>"],):
        job.answer.watch(index)
    assert job.answer.drain() == []
    completion = Completion(ids=(1,), finish_reason="stop", stop_id=2, num_prompt_tokens=3)
    reply = reply_from(job.answer.finish(completion), parsed=job.answer.parsed)
    assert (reply.content, reply.tool_calls, reply.finish_reason, reply.parsed) == ("", (), "stop", True)


def test_an_unconstrained_answer_that_is_not_calls_is_none_and_raw_text(model: TextModel) -> None:
    assert model.call_tools(["Hi"], constrained=False, max_tokens=12) == [None]
    reply = model.chat([{"role": "user", "content": "Hi"}], tools="all", constrained=False, max_tokens=12)
    assert not reply.parsed and reply.content


def test_a_call_cut_off_by_max_tokens_is_not_a_call(model: TextModel) -> None:
    reply = model.chat([USER], tools=["call_contact"], tool_choice="required", max_tokens=2)
    assert (reply.tool_calls, reply.finish_reason, reply.parsed) == ((), "length", False)


def test_without_tools_no_functional_token_is_chosen(model: TextModel) -> None:
    banned = set(model.prepare_chat([USER]).request.params.banned_ids)
    assert banned == {model.tokenizer.special_ids[token] for token in model.dialect.tokens}


def test_defaults_come_from_generation_config_and_callers_go_over_them(model_dir: Path, tmp_path: Path) -> None:
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = {"do_sample": True, "temperature": 0.5, "top_k": 7, "max_new_tokens": 9, "eos_token_id": [3, 4]}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    model = TextModel.load(tmp_path)
    params = model.prepare_text("x").request.params
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.5, 7, None, 9)
    assert {3, 4} <= set(params.stop_ids)
    params = model.prepare_text("x", temperature=0.0, stop_ids=[5]).request.params
    assert params.greedy and {3, 4, 5} <= set(params.stop_ids)
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": -1}')
    with pytest.raises(WeightsError, match=r"generation_config.json: temperature is -1"):
        TextModel.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds a list"),
        ('{"eos_token_id": "</s>"}', "eos_token_id is '</s>', which is neither an id nor a list of ids"),
        ('{"do_sample": true, "temperature": "hot"}', "temperature is 'hot', which is no number"),
    ],
)
def test_a_generation_config_of_another_kind_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(WeightsError, match=rf"generation_config\.json.* {message}"):
        read_defaults(tmp_path)


def test_one_request_is_not_taken_for_a_list_of_its_characters(model: TextModel) -> None:
    with pytest.raises(RequestError, match="was given one text"):
        model.call_tools("Set a timer")


@pytest.mark.parametrize(
    ("keys", "param"),
    [
        ({"tools": "set_timer"}, "tools"),
        ({"tools": {"type": "function", "function": {"name": "set_timer"}}}, "tools"),
        ({"tools": "all", "tool_choice": "maybe"}, "tool_choice"),
    ],
)
def test_one_tool_is_no_list_of_tools_and_a_choice_is_a_known_one(
    model: TextModel, keys: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        model.chat([{"role": "user", "content": "hello"}], **keys)
    assert caught.value.param == param


def test_a_backend_that_is_none_is_named(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"backend 'lama.cpp' is not known \(did you mean llama.cpp\?\)"):
        leveret.load(model_dir, backend="lama.cpp")


def test_a_temperature_without_do_sample_stays_greedy_as_in_transformers(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.8}')
    assert read_defaults(tmp_path).greedy


def test_the_default_length_is_cut_to_the_context_but_a_given_one_is_an_error(model: TextModel) -> None:
    prompt = [5] * 500
    assert model.prepare_text(prompt).request.params.max_tokens == 12
    with pytest.raises(RequestError, match=r"500 tokens and max_tokens is 13.*512"):
        model.run([model.prepare_text(prompt, max_tokens=13)])
    with pytest.raises(RequestError, match=r"512 tokens"):
        model.run([model.prepare_text([5] * 512)])


@pytest.mark.parametrize(
    ("messages", "arguments", "param"),
    [
        ([], {}, "messages"),
        ("hello", {}, "messages"),
        (USER, {}, "messages"),
        ([{"role": "wizard", "content": "x"}], {}, "messages[0].role"),
        ([USER, {"role": "user"}], {}, "messages[1].content"),
        ([USER], {"tools": ["set_tmer"]}, "tools"),
        ([USER], {"tool_choice": "required"}, "tool_choice"),
        ([USER], {"tools": [{"type": "function"}]}, "tools"),
        ([USER], {"temprature": 1}, "temprature"),
        ([{"role": "system", "content": "x"}], {"tools": "all"}, "messages"),
    ],
)
def test_bad_requests_name_the_parameter(
    model: TextModel, messages: list[dict[str, str]], arguments: dict[str, object], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        model.chat(messages, **arguments)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_tokens", value) for value in ("3", 2.5, True)],
        *[("temperature", value) for value in ("1", False)],
        *[("top_k", 3.0), ("top_p", "0.5"), ("seed", 1.5), ("logprobs", True), ("repetition_penalty", "2")],
        *[("stop", [1]), ("stop_ids", 5), ("stop_ids", ["a"]), ("banned_ids", 7)],
        *[("ignore_eos", "no"), ("skip_special_tokens", "false")],
        *[("logit_bias", {"5": 1}), ("logit_bias", [(5, 1)]), ("logit_bias", {5: "1"})],
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(model: TextModel, name: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"{name} is ") as caught:
        model.generate("a", **{"max_tokens": 2, name: value})  # type: ignore[arg-type]
    assert caught.value.param == name


def test_numbers_of_numpy_are_numbers(model: TextModel) -> None:
    options = {"max_tokens": np.int64(3), "temperature": np.float32(0.5), "seed": np.int64(1), "top_k": np.int32(5)}
    plain = {name: number.item() for name, number in options.items()}
    assert model.generate("a", **options) == model.generate("a", **plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [None, 5, b"abc", ["a", "b"], {1: 2}])
def test_a_prompt_is_a_text_or_token_ids(model: TextModel, prompt: object) -> None:
    with pytest.raises(RequestError, match="a text or a list of token ids"):
        model.generate(prompt, max_tokens=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        *[({"tools": "all", "tool_choice": choice}, "tool_choice") for choice in ("always", "set_timer", {}, None)],
        *[({"tools": tools}, "tools") for tools in ("set_timer", {"name": "set_timer"})],
    ],
)
def test_a_choice_or_an_offer_that_is_none_is_refused(model: TextModel, options: dict, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        model.chat([{"role": "user", "content": "x"}], max_tokens=2, **options)
    assert caught.value.param == param


def test_an_unknown_backend_is_a_mistake_of_the_caller(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean transformers"):
        TextModel.load(model_dir, backend="transformer")


def test_a_base_model_has_no_chat_and_says_so(model: TextModel) -> None:
    base = TextModel(model.model, model.tokenizer, name="base")
    with pytest.raises(RequestError, match="base has no chat template"):
        base.chat([USER])
    with pytest.raises(RequestError, match=r"no tools"):
        TextModel(model.model, model.tokenizer, template=model.template).chat([USER], tools="all")


def test_stop_strings_end_text_and_are_cut(model: TextModel) -> None:
    whole = model.generate("Once upon", max_tokens=40)
    stop = whole[6:9]
    cut = model.generate("Once upon", max_tokens=40, stop=stop)
    assert cut == whole[: whole.index(stop)] == "".join(model.stream("Once upon", max_tokens=40, stop=[stop]))


def test_the_python_guide_runs(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/guide/python.md").read_text("utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert "runs/demo/finetune/model" in code
    exec(code.replace("runs/demo/finetune/model", str(model_dir)), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("options", [{}, {"ignore_eos": True}, {"skip_special_tokens": False}])
def test_a_stop_may_be_the_name_of_a_special_token(model: TextModel, options: dict[str, Any]) -> None:
    token = "<s>"  # no end of this model's
    bias = {model.tokenizer.special_ids[token]: 100}
    reply = model.run([model.prepare_text("Set", stop=["\n", token], logit_bias=bias, max_tokens=9, **options)])[0]
    assert (reply.content, reply.finish_reason, reply.usage.completion_tokens) == ("", "stop", 1)


def test_a_stop_named_like_a_functional_token_cuts_no_call(model: TextModel) -> None:
    assert model.dialect is not None
    tokens = model.dialect.tokens
    for seed in range(4):
        options: dict[str, Any] = {"tools": "all", "tool_choice": "required", "temperature": 1.5, "seed": seed}
        assert model.chat([USER], stop=tokens, **options) == model.chat([USER], **options)


def test_scores_of_an_answer_spell_its_text_and_stop_where_it_is_cut(model: TextModel) -> None:
    whole = model.run([model.prepare_text("Set", max_tokens=30, logprobs=2)])[0]
    pieces = [model.tokenizer.bytes_of(each.score.id, skip_special=True) for each in whole.scores]
    assert b"".join(pieces).decode("utf-8", "replace") == whole.content
    assert [each.start for each in whole.scores] == sorted(each.start for each in whole.scores)
    assert all(len(each.score.top) == 2 for each in whole.scores)
    stop = whole.content[5:7]
    cut = model.run([model.prepare_text("Set", max_tokens=30, logprobs=2, stop=[stop])])[0]
    assert cut.content == whole.content[: whole.content.index(stop)]
    assert list(cut.scores) == [each for each in whole.scores if each.start < len(cut.content)]
    streamed = list(model.deltas(model.prepare_text("Set", max_tokens=30, logprobs=2)))
    assert reply_from(streamed) == whole


def test_without_eos_only_the_callers_stops_end_an_answer(model: TextModel) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 1.5, "seed": 3}
    ended = model.run([model.prepare_text("Set", **(options | {"seed": seed})) for seed in range(40)])
    assert any(reply.finish_reason == "stop" for reply in ended)
    jobs = [model.prepare_text("Set", ignore_eos=True, **(options | {"seed": seed})) for seed in range(40)]
    assert {reply.finish_reason for reply in model.run(jobs)} == {"length"}


def test_special_tokens_are_shown_when_asked_for(model: TextModel) -> None:
    token = model.tokenizer.special_tokens["bos_token"]
    options: dict[str, Any] = {"max_tokens": 2, "logit_bias": {model.tokenizer.id_of(token): 100}}
    assert model.generate("Set", **options) == ""
    assert model.generate("Set", skip_special_tokens=False, **options) == 2 * token


def test_the_keys_of_the_engine_reach_it_and_are_refused_for_other_backends(model_dir: Path) -> None:
    for engine in (EngineConfig(cache_memory_mib=1), {"cache_memory_mib": 1}):
        assert TextModel.load(model_dir, engine=engine).engine.stats.cache_bytes <= 1 << 20
    with pytest.raises(ConfigError, match="did you mean cache_memory_mib"):
        TextModel.load(model_dir, engine={"cache_memory": 1})
    words = (
        "engine.max_rows, engine.speculation are for our own engine, and the backend is transformers: leave them out"
    )
    with pytest.raises(ConfigError, match=words):
        TextModel.load(model_dir, backend="transformers", engine=EngineConfig(max_rows=2, speculation=None))


@pytest.mark.parametrize("backend", ["llama.cpp", "http://127.0.0.1:9/v1"])
def test_how_weights_are_loaded_is_refused_where_another_program_loads_them(model_dir: Path, backend: str) -> None:
    with pytest.raises(ConfigError, match=f"dtype, device are for our own engine, and the backend is {backend}"):
        TextModel.load(model_dir, backend=backend, dtype="bfloat16", device="cuda")
    TextModel.load(model_dir, backend="transformers", dtype="bfloat16")


def test_a_tool_set_offers_its_tools(model: TextModel) -> None:
    assert model.tools is not None
    whole, listed, own = (
        model.chat([USER], tools=tools, tool_choice="required", seed=3, temperature=1.0)
        for tools in (model.tools, model.tools.to_openai(), "all")
    )
    assert whole.tool_calls and whole.tool_calls == listed.tool_calls == own.tool_calls
    (only,) = ToolSet([model.tools.get("take_photo")])
    reply = model.chat([USER], tools=ToolSet([only]), tool_choice="required", temperature=2.0, seed=3)
    assert {call.name for call in reply.tool_calls} == {"take_photo"}


def test_a_stop_text_is_one_text_also_with_ignore_eos(model: TextModel) -> None:
    for options in ({"ignore_eos": True}, {}):
        params = model.prepare_text("Set", stop="ab", **options).request.params
        assert params.stop == ("ab",)


@pytest.mark.parametrize("keys", [{}, {"ignore_eos": True}, {"regex": "[ab]*"}, {"regex": "a*", "ignore_eos": True}])
def test_stop_ids_that_the_model_cannot_generate_do_no_harm(model: TextModel, keys: dict[str, Any]) -> None:
    """Clients that were written for one model send its stop ids to others."""
    foreign, plain = (
        model.prepare_text("Set", max_tokens=9, stop_ids=ids, **keys) for ids in ([10**30, -1, 57001], [])
    )
    assert foreign.request.params == plain.request.params
    first, second = model.run([foreign, plain])
    assert first == second
