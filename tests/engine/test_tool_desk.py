"""Tools with and without a token of their own: what the prompt says, and that every answer's calls are valid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.chat.messages import Message, ToolCall
from leveret.chat.template import ChatTemplate, template_for
from leveret.engine.jobs import Job
from leveret.engine.reply import Delta, Reply, reply_from
from leveret.engine.request import Completion
from leveret.engine.text import TextModel
from leveret.engine.tool_offer import offer_from, writing_of
from leveret.errors import RequestError
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.tools.functional import FunctionalDialect

from .conftest import TEXTS, TOOLS, random_decoder, tiny_config

USER = {"role": "user", "content": "Set a timer for five minutes and find a route to Paris"}
ROUTE = {
    "name": "find_route",
    "description": "Find a way",
    "parameters": {
        "type": "object",
        "properties": {
            "to": {"type": "string", "maxLength": 5, "minLength": 1},
            "stops": {"type": "array", "items": {"enum": ["巴黎", "Lyon"]}, "maxItems": 2},
            "mode": {"$ref": "#/$defs/mode"},
        },
        "required": ["to", "mode"],
        "$defs": {"mode": {"enum": ["walk", "drive"]}},
    },
}
NOTE = {"name": "note", "parameters": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 4}}}}
TIMER = {"name": "set_timer", "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}}}
SCHEMAS = {each["name"]: each["parameters"] for each in (ROUTE, NOTE)}

NATIVE = """
{%- if tools %}{{- '<|sys|>Tools:\n' }}{% for tool in tools %}{{- tool | tojson + '\n' }}{% endfor %}{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|bot|>' + message.content -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}\n</tool_call>' -}}
{%- endfor -%}{{- '<|end|>' -}}
{%- else -%}{{- '<|' + message.role + '|>' + message.content + '<|end|>' -}}{%- endif -%}
{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|bot|>' -}}{%- endif -%}
"""  # noqa: E501


MISTRAL = """
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- if tools and loop.last -%}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}{%- endif -%}
{{- '[INST] ' + message.content + '[/INST]' -}}
{%- elif message.tool_calls -%}
{{- '[TOOL_CALLS] [' -}}
{%- for call in message.tool_calls -%}
{%- if not call.id is defined or call.id | length < 9 -%}{{- raise_exception('a call needs an id') -}}{%- endif -%}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id[-9:] + '"}' -}}{{- ', ' if not loop.last else ']</s>' -}}
{%- endfor -%}
{%- elif message.role == 'tool' -%}
{{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id[-9:] + '"}[/TOOL_RESULTS]' -}}
{%- else -%}{{- ' ' + message.content + '</s>' -}}{%- endif -%}
{%- endfor -%}
"""  # noqa: E501


def entry(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def native_model(*, marker_special: bool) -> TextModel:
    """A model whose chat template lists tools and writes calls; `<tool_call>` may be a special token of it."""
    special = ["</s>", "<|end|>", "<|bot|>", *(["<tool_call>", "</tool_call>"] if marker_special else [])]
    tokenizer = train_byte_bpe(TEXTS, vocab_size=400, special_tokens=special, eos_token="</s>", chat_template=NATIVE)
    decoder = random_decoder(tiny_config(tokenizer.vocab_size, max_position_embeddings=1600))
    return TextModel(decoder, tokenizer, template=ChatTemplate(NATIVE))


@pytest.fixture(scope="module", params=[False, True], ids=["marker is text", "marker is a token"])
def native(request: pytest.FixtureRequest) -> TextModel:
    return native_model(marker_special=request.param)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> TextModel:
    """A model with functional tokens, whose template knows nothing of tools."""
    decoder = random_decoder(tiny_config(tokenizer.vocab_size, max_position_embeddings=1600))
    return TextModel(decoder, tokenizer, template=template_for(tokenizer), tools=TOOLS)


@pytest.fixture(scope="module")
def mistral() -> TextModel:
    """A model that writes calls as a list behind a token, and wants an id for every call."""
    special = ["</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
    tokenizer = train_byte_bpe(TEXTS, vocab_size=400, special_tokens=special, eos_token="</s>", chat_template=MISTRAL)
    decoder = random_decoder(tiny_config(tokenizer.vocab_size, max_position_embeddings=1600))
    return TextModel(decoder, tokenizer, template=ChatTemplate(MISTRAL))


def check_calls(reply: Reply) -> None:
    for call in reply.tool_calls:
        if call.name in SCHEMAS:
            jsonschema.validate(call.arguments, {"additionalProperties": False, **SCHEMAS[call.name]})
        else:
            TOOLS.get(call.name).validate(call.arguments)


def check_pieces(deltas: Sequence[Delta]) -> None:
    """The pieces of each call: its name first, then text that adds up to its arguments."""
    whole = [delta.tool_call for delta in deltas if delta.tool_call is not None]
    pieces = [delta.call_piece for delta in deltas if delta.call_piece is not None]
    for index, call in enumerate(whole):
        own = [piece for piece in pieces if piece.index == index]
        assert own[0].name == call.name and all(piece.name is None for piece in own[1:])
        assert json.loads("".join(piece.arguments for piece in own)) == call.arguments


def run(model: TextModel, job: Job) -> tuple[Reply, list[Delta]]:
    deltas = list(model.deltas(job))
    check_pieces(deltas)
    reply = reply_from(deltas, parsed=job.answer.parsed)
    check_calls(reply)
    return reply, deltas


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), parallel=st.booleans())
def test_required_calls_of_declared_functions_are_always_valid(seed: int, parallel: bool, native: TextModel) -> None:
    options: dict[str, Any] = {"seed": seed, "temperature": 1.3, "max_tokens": 180}
    job = native.prepare_chat(
        [USER], tools=[entry(ROUTE), entry(NOTE)], tool_choice="required", parallel_tool_calls=parallel, **options
    )
    reply, _ = run(native, job)
    if reply.finish_reason == "length":
        return
    assert reply.finish_reason == "tool_calls" and reply.parsed and reply.content == ""
    assert 1 <= len(reply.tool_calls) <= (8 if parallel else 1)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), choice=st.sampled_from(["auto", "required"]), parallel=st.booleans())
def test_functional_and_written_calls_may_share_an_answer(
    seed: int, choice: Any, parallel: bool, model: TextModel
) -> None:
    tools = [entry(TIMER), entry(ROUTE), entry(NOTE)]
    offered: dict[str, Any] = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel}
    options: dict[str, Any] = {"seed": seed, "temperature": 1.3, "max_tokens": 80}
    job, again = (model.prepare_chat([USER], **offered, **options) for _ in range(2))
    reply, _ = run(model, job)
    assert reply.parsed or reply.finish_reason == "length"
    assert parallel or len(reply.tool_calls) <= 1
    if choice == "required" and reply.finish_reason != "length":
        assert reply.tool_calls and reply.finish_reason == "tool_calls" and not reply.content
    assert model.run([again]) == [reply]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), parallel=st.booleans())
def test_another_dialect_is_found_by_its_template_and_kept_to(seed: int, parallel: bool, mistral: TextModel) -> None:
    options: dict[str, Any] = {"seed": seed, "temperature": 1.3, "max_tokens": 180, "tool_choice": "required"}
    job = mistral.prepare_chat([USER], tools=[entry(ROUTE), entry(NOTE)], parallel_tool_calls=parallel, **options)
    reply, _ = run(mistral, job)
    assert reply.finish_reason == "length" or (reply.parsed and not reply.content)
    assert reply.finish_reason == "length" or 1 <= len(reply.tool_calls) <= (8 if parallel else 1)


def test_calls_without_ids_get_them_where_a_template_wants_some(mistral: TextModel) -> None:
    asked = Message("assistant", "", tool_calls=(ToolCall("find_route", {"to": "x"}), ToolCall("note", {})))
    talk = [Message("user", "Go"), asked, Message("tool", "far"), Message("tool", "noted"), Message("user", "So?")]
    prompt = mistral.tokenizer.decode(mistral.prepare_chat(talk, tools=[entry(ROUTE)]).request.prompt_ids)
    assert '[TOOL_CALLS] [{"name": "find_route", "arguments": {"to": "x"}, "id": "call00000"}, {"name"' in prompt
    assert (
        '{"content": far, "call_id": "call00000"}' in prompt and '{"content": noted, "call_id": "call00001"}' in prompt
    )
    text = 'Well. [TOOL_CALLS] [{"name": "note", "arguments": {"text": "a]"}}]'
    reply, deltas = scripted(mistral, text, tools=[entry(NOTE)])
    assert reply.content == "Well." and reply.tool_calls == (ToolCall("note", {"text": "a]"}),)
    assert len([delta for delta in deltas if delta.call_piece is not None]) > 3


def scripted(model: TextModel, text: str, **keys: Any) -> tuple[Reply, list[Delta]]:
    """The reply if the model wrote this text, whose functional tokens are read as such; every id must be allowed."""
    job = model.prepare_chat([USER], max_tokens=200, **keys)
    ids, constraint = model.tokenizer.encode(text, allow_special=True), job.request.constraint
    deltas: list[Delta] = []
    for token_id in ids:
        assert token_id in constraint.allowed_ids(), model.tokenizer.decode([token_id])
        constraint.advance(token_id)
        job.answer.watch(token_id)
        deltas += job.answer.drain()
    assert constraint.finished or set(job.request.params.stop_ids) & set(constraint.allowed_ids().tolist())
    deltas += job.answer.finish(Completion(ids=tuple(ids), finish_reason="stop", stop_id=None, num_prompt_tokens=3))
    check_pieces(deltas)
    return reply_from(deltas, parsed=job.answer.parsed), deltas


def test_text_then_both_kinds_of_calls_parse_and_stream(model: TextModel) -> None:
    written = '<tool_call>\n{"name": "find_route", "arguments": {"to": "巴黎 <", "mode": "walk"}}\n</tool_call>'
    text = f"Let me see. <api_0>(5)<api_end>{written}\n{written}"
    reply, deltas = scripted(model, text, tools=[entry(ROUTE), entry(TIMER)])
    route = ToolCall("find_route", {"to": "巴黎 <", "mode": "walk"})
    assert reply.content == "Let me see." and reply.finish_reason == "tool_calls"
    assert reply.tool_calls == (ToolCall("set_timer", {"minutes": 5}), route, route)
    assert len([delta for delta in deltas if delta.call_piece is not None]) > 12


def test_text_alone_is_content_and_so_is_what_only_begins_like_a_call(model: TextModel) -> None:
    for text in (" No tool  fits.\n", "a <tool_cal of <", "<no_tool>"):
        reply, _ = scripted(model, text, tools=[entry(ROUTE), entry(TIMER)])
        assert reply.content == text.removeprefix("<no_tool>")
        assert reply.finish_reason == "stop" and not reply.tool_calls and reply.parsed


def test_a_form_and_tools_together_give_json_or_calls(model: TextModel) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for tools in ([entry(ROUTE)], [entry(ROUTE), entry(TIMER)], [entry(TIMER)]):
        reply, _ = scripted(model, '{"a": 5}', tools=tools, schema=schema)
        assert reply.content == '{"a": 5}' and reply.finish_reason == "stop"
        job = model.prepare_chat([USER], tools=tools, schema=schema)
        assert not {model.tokenizer.encode("L")[0]} & set(job.request.constraint.allowed_ids().tolist())
    called, _ = scripted(model, "<api_0>(5)<api_end>", tools=[entry(ROUTE), entry(TIMER)], schema=schema)
    assert called.tool_calls == (ToolCall("set_timer", {"minutes": 5}),)
    with pytest.raises(RequestError, match="cannot be combined"):
        model.prepare_chat([USER], tools=[entry(ROUTE)], regex="a+")


def test_a_call_that_is_cut_off_is_what_was_given_out_of_it_and_raw_text_before_its_name(native: TextModel) -> None:
    cut = []
    for max_tokens in range(4, 76, 3):
        keys: dict[str, Any] = {"tools": [entry(ROUTE)], "tool_choice": "required", "max_tokens": max_tokens}
        reply, deltas = run(native, native.prepare_chat([USER], **keys))
        assert reply == native.chat([USER], **keys)
        if reply.finish_reason != "length" or reply.tool_calls:
            continue
        pieces = [delta.call_piece for delta in deltas if delta.call_piece is not None]
        if reply.cut_call is None:
            assert not pieces and reply.content.startswith("<tool_call>") is not reply.parsed
            assert reply.content[:11] == "<tool_call>"[: len(reply.content)]
        else:
            assert not reply.content and not reply.parsed and reply.cut_call.name == pieces[0].name == "find_route"
            assert reply.cut_call.arguments == "".join(piece.arguments for piece in pieces)
        cut.append(reply.cut_call is None)
    assert {True, False} == set(cut)


def test_a_second_call_that_is_cut_off_leaves_the_first_whole(model: TextModel) -> None:
    written = '<tool_call>\n{"name": "note", "arguments": {"text": "ab'
    for first in ('<tool_call>\n{"name": "note", "arguments": {}}\n</tool_call>\n', "<api_0>(5)<api_end>"):
        for second, arguments in ((written, '{"text": "ab'), ("<api_0>(1", "")):
            job = model.prepare_chat([USER], tools=[entry(NOTE), entry(TIMER)], max_tokens=200)
            ids = model.tokenizer.encode(first + second, allow_special=True)
            deltas = []
            for token_id in ids:
                job.answer.watch(token_id)
                deltas += job.answer.drain()
            ended = Completion(ids=tuple(ids), finish_reason="length", stop_id=None, num_prompt_tokens=3)
            reply = reply_from([*deltas, *job.answer.finish(ended)], parsed=job.answer.parsed)
            assert len(reply.tool_calls) == 1 and not reply.content and not reply.parsed
            assert reply.cut_call is not None and (reply.cut_call.index, reply.cut_call.arguments) == (1, arguments)


def test_the_template_lists_declared_tools_when_it_can(native: TextModel) -> None:
    job = native.prepare_chat([USER], tools=[entry(ROUTE)])
    prompt = native.tokenizer.decode(job.request.prompt_ids)
    assert prompt.startswith("<|sys|>Tools:\n") and '"name": "find_route"' in prompt and "<tools>" not in prompt
    assert writing_of(native.template).native and not writing_of(ChatTemplate("{{ messages[0].content }}")).native


def test_elsewhere_the_system_message_lists_them_and_results_come_from_the_user(model: TextModel) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find_route", "arguments": '{"to": "<api_0>"}'}}
    timer = {"id": "c2", "type": "function", "function": {"name": "set_timer", "arguments": '{"minutes": 5}'}}
    talk = [
        {"role": "system", "content": "Be kind."},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call, timer]},
        {"role": "tool", "content": "no way", "tool_call_id": "c1"},
        {"role": "tool", "content": "</s> rings", "tool_call_id": "c2"},
        {"role": "user", "content": "And now?"},
    ]
    prompt_ids = model.prepare_chat(talk, tools=[entry(ROUTE), entry(TIMER)]).request.prompt_ids
    prompt = model.tokenizer.decode(prompt_ids)
    assert "system\nBe kind.\n\nThese functions can be called:" in prompt and '"find_route"' in prompt
    assert "set_timer" not in prompt, "a tool with a token of its own needs no words"
    assert '<api_0>(5)<api_end>\n<tool_call>\n{"name": "find_route", "arguments": {"to": "\\u003capi_0>"}}' in prompt
    assert "user\n<tool_response>\nno way\n</tool_response>\n<tool_response>\n</s> rings\n</tool_response>" in prompt
    special = [token for token in prompt_ids if model.tokenizer.is_special(token)]
    assert model.tokenizer.eos_id not in special and special.count(model.tokenizer.id_of("<api_0>")) == 1


def test_a_template_that_wants_the_name_of_a_result_gets_it(native: TextModel) -> None:
    """OpenAI's clients give the id of the call only."""
    named = NATIVE.replace("'|>' + message.content", "'|>' + message.name|default('', true) + ':' + message.content")
    model = TextModel(native.model, native.tokenizer, template=ChatTemplate(named))
    call = {"id": "c1", "type": "function", "function": {"name": "find_route", "arguments": "{}"}}
    talk = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "no", "tool_call_id": "c1"}]
    prompt = model.tokenizer.decode(model.prepare_chat(talk, tools=[entry(ROUTE)]).request.prompt_ids)
    assert "<|tool|>find_route:no<|end|>" in prompt


def test_no_choice_and_no_tools_leave_the_prompt_alone(native: TextModel) -> None:
    bare = native.prepare_chat([USER]).request
    for keys in ({"tools": []}, {"tools": [entry(ROUTE)], "tool_choice": "none"}):
        request = native.prepare_chat([USER], **keys).request
        assert request.prompt_ids == bare.prompt_ids and request.constraint is None


@pytest.mark.parametrize(
    ("tools", "keys", "words"),
    [
        (["find_route"], {}, "no tools|no functional token"),
        ("all", {}, "no tools"),
        ([{"type": "function"}], {}, r"tools\[0\] must be"),
        ([entry(ROUTE), entry(ROUTE)], {}, "declared twice"),
        ([], {"tool_choice": "required"}, "no tools are offered"),
        ([entry({"name": "f", "parameters": {"type": "array"}})], {}, "of type object"),
        (
            [entry(NOTE), entry({"name": "f", "parameters": {"properties": {"x": {"not": {}}}}})],
            {},
            r'tools\[1\].function.parameters at /properties/x cannot .*"not"',
        ),
    ],
)
def test_an_offer_that_cannot_be_is_refused(native: TextModel, tools: Any, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        native.prepare_chat([USER], tools=tools, **keys)


def test_a_function_is_declared_as_openai_or_mcp_declares_it() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    mcp = {"name": "f", "description": "F", "inputSchema": schema}
    for tool in (mcp, entry({"name": "f", "description": "F", "parameters": schema})):
        (declared,) = offer_from([tool], None).declared
        assert declared.entry["function"] == {
            "name": "f",
            "description": "F",
            "parameters": schema,
        }
        assert json.loads(declared.schema.source) == {"additionalProperties": False, **schema}
    known = offer_from([entry(TIMER), mcp, "take_photo"], TOOLS)
    assert known.functional == ("set_timer", "take_photo") and [each.name for each in known.declared] == ["f"]


def test_a_misspelt_name_of_a_known_tool_declares_nothing() -> None:
    with pytest.raises(RequestError, match="did you mean 'set_timer'"):
        offer_from([entry({"name": "set_tmer"})], TOOLS)
    assert offer_from([entry({"name": "set_tmer", "description": "Another"})], TOOLS).declared
    assert offer_from([entry({"name": "set_tmer"})], None).declared
    assert offer_from([entry({"name": "ping"})], TOOLS).declared  # a function without arguments, as OpenAI has them


@pytest.mark.parametrize(
    ("properties", "others", "learned"),
    [
        ({"minutes": {"type": "integer"}}, {}, True),
        ({"minutes": {"type": ["number", "null"]}, "label": {"type": "string"}}, {"required": ["minutes"]}, True),
        ({"minutes": True}, {}, True),
        ({}, {}, True),
        ({"minutes": {"type": "string"}}, {}, False),
        ({"minutes": {"enum": [1, 5]}}, {}, False),
        ({"seconds": {"type": "integer"}}, {}, False),
        ({"minutes": {"type": "integer"}, "label": {"type": "string"}}, {"required": ["label"]}, False),
    ],
)
def test_a_tool_that_is_declared_otherwise_is_not_the_one_that_the_model_learned(
    properties: dict[str, Any], others: dict[str, Any], learned: bool
) -> None:
    offer = offer_from([entry({"name": "set_timer", "parameters": {"properties": properties, **others}})], TOOLS)
    assert (offer.functional, len(offer.declared)) == ((("set_timer",), 0) if learned else ((), 1))


@pytest.mark.parametrize("seed", range(3))
def test_calls_fit_the_declaration_of_the_request_in_every_round(model: TextModel, seed: int) -> None:
    schema = {"type": "object", "properties": {"seconds": {"enum": ["300", "60"]}}, "required": ["seconds"]}
    tools = [entry({"name": "set_timer", "parameters": schema}), "take_photo"]
    talk: list[Any] = [USER]
    reply = model.chat(talk, tools=tools[:1], tool_choice="required", temperature=1.2, seed=seed, max_tokens=80)
    assert reply.tool_calls
    for call in reply.tool_calls:
        jsonschema.validate(call.arguments, schema)
    made = {"id": "c1", "type": "function", "function": {"name": "set_timer", "arguments": '{"seconds": "60"}'}}
    talk += [{"role": "assistant", "tool_calls": [made]}, {"role": "tool", "content": "done", "tool_call_id": "c1"}]
    for keys in ({"tools": tools}, {"tools": tools, "tool_choice": "none"}, {}):
        prompt = model.tokenizer.decode(model.prepare_chat(talk, **keys).request.prompt_ids)
        assert '"seconds": "60"' in prompt and "done" in prompt


def test_a_message_says_its_calls_in_the_dialect_of_the_prompt() -> None:
    dialect = FunctionalDialect(TOOLS)
    assert dialect.without_tokens('{"a": "<b>"}') == '{"a": "\\u003cb>"}'
    assert json.loads(dialect.without_tokens('{"a": "<b>"}')) == {"a": "<b>"}
    assert Message("user", "x").tool_calls == ()


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("seed", range(4))
def test_every_token_of_an_answer_with_tools_has_its_score(native: TextModel, choice: Any, seed: int) -> None:
    job = native.prepare_chat(
        [USER], tools=[entry(ROUTE), entry(NOTE)], tool_choice=choice, seed=seed, logprobs=1, max_tokens=40
    )
    [completion] = native.engine.generate([job.request])
    reply = reply_from(job.answer.finish(completion), parsed=job.answer.parsed)
    assert [each.score.id for each in reply.scores] == list(completion.ids) and completion.ids
    starts = [each.start for each in reply.scores]
    assert starts == sorted(starts) and starts[-1] <= len(reply.content)
    assert any(each.score.top for each in reply.scores)


@pytest.mark.parametrize("tools", [[entry(ROUTE)], [entry(TIMER)], [entry(ROUTE), entry(TIMER)]], ids=len)
def test_with_ignore_eos_calls_end_where_they_end_and_text_at_max_tokens(model: TextModel, tools: list[Any]) -> None:
    for seed in range(4):
        keys: dict[str, Any] = {"tools": tools, "ignore_eos": True, "temperature": 1.3, "seed": seed}
        reply, _ = run(model, model.prepare_chat([USER], **keys, max_tokens=40))
        text_only = tools != [entry(TIMER)] and not reply.tool_calls
        assert reply.parsed and (reply.finish_reason == "length" or not text_only)
        reply, _ = run(model, model.prepare_chat([USER], **keys, tool_choice="required", max_tokens=300))
        assert reply.finish_reason == "length" or (reply.tool_calls and reply.content == "")


ROUND = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call00001",
                "type": "function",
                "function": {"name": "find_route", "arguments": '{"to": "<api_0>"}'},
            },
            {"id": "call00002", "type": "function", "function": {"name": "set_timer", "arguments": '{"minutes": 5}'}},
        ],
    },
    {"role": "tool", "content": "no way", "tool_call_id": "call00001"},
    {"role": "tool", "content": "rings", "tool_call_id": "call00002"},
]


@pytest.mark.parametrize("kind", ["functional", "plain", "native", "mistral"])
def test_a_round_of_calls_is_shown_whatever_is_offered_next(
    kind: str, model: TextModel, native: TextModel, mistral: TextModel
) -> None:
    """The last request of a loop: the same tools and `none`, or no tools at all."""
    plain = TextModel(model.model, model.tokenizer, template=model.template)
    asked = {"functional": model, "plain": plain, "native": native, "mistral": mistral}[kind]
    declared = asked.tokenizer.decode(asked.prepare_chat(ROUND, tools=[entry(ROUTE)]).request.prompt_ids)
    last: list[dict[str, Any]] = [{}, {"tools": [entry(ROUTE), entry(TIMER)], "tool_choice": "none"}]
    for offered in last:
        job = asked.prepare_chat(ROUND, **offered, max_tokens=5)
        prompt = asked.tokenizer.decode(job.request.prompt_ids)
        assert prompt[prompt.index('{"name": "find_route", "arguments"') :] in declared
        assert "no way" in prompt and "rings" in prompt and "These functions" not in prompt
        assert asked.run([job])[0].finish_reason


def test_a_template_that_writes_calls_in_a_way_of_its_own_still_does(native: TextModel) -> None:
    own = NATIVE.replace("<tool_call>", "<call>").replace("</tool_call>", "</call>")
    model = TextModel(native.model, native.tokenizer, template=ChatTemplate(own))
    prompt = model.tokenizer.decode(model.prepare_chat(ROUND).request.prompt_ids)
    assert '<call>\n{"name": "find_route"' in prompt and "<|tool|>no way<|end|>" in prompt


def test_a_function_that_could_not_be_called_is_refused(model: TextModel) -> None:
    tool = {"name": "<api_0>", "description": "?", "parameters": {"type": "object", "properties": {}}}
    with pytest.raises(RequestError, match="holds a special token") as caught:
        model.chat([{"role": "user", "content": "x"}], tools=[tool], max_tokens=2)
    assert caught.value.param == "tools"
