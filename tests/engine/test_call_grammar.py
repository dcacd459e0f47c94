"""Written calls of random functions: whatever is picked among the allowed ids parses and fits its schema."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.engine.assembler import TextAssembler
from leveret.engine.call_answer import MixedAnswer
from leveret.engine.call_grammar import call_grammar, marker_ids
from leveret.engine.grammar import GrammarBook
from leveret.engine.reply import reply_from
from leveret.engine.request import Completion
from leveret.engine.tool_offer import offer_from
from leveret.errors import RequestError
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.stream import StreamDecoder
from leveret.tools.dialects import dialect_named

from .test_grammar import PROPERTIES, branches, follow, leaves

NAMES = ("f", "find_route", "find_rome", "名字", 'quote"d')
HERMES = dialect_named("hermes")


@pytest.fixture(scope="module")
def book(tokenizer: Tokenizer) -> GrammarBook:
    return GrammarBook(tokenizer)


def functions() -> st.SearchStrategy[list[dict[str, Any]]]:
    """One to three functions with random schemas."""
    values = st.one_of(leaves(), branches(leaves()))
    properties = st.dictionaries(st.sampled_from(PROPERTIES), values, max_size=2)
    schema = properties.map(lambda each: {"type": "object", "properties": each, "required": sorted(each)[:1]})
    chosen = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
    return chosen.flatmap(lambda names: st.tuples(*(schema for _ in names)).map(
        lambda schemas: [{"name": name, "parameters": each} for name, each in zip(names, schemas, strict=True)]
    ))  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    tools=functions(),
    choices=st.lists(st.floats(0, 0.999), min_size=1, max_size=40),
    required=st.booleans(),
    parallel=st.booleans(),
)
def test_any_choices_of_allowed_ids_make_valid_calls(
    tools: list[dict[str, Any]],
    choices: list[float],
    required: bool,
    parallel: bool,
    book: GrammarBook,
    tokenizer: Tokenizer,
) -> None:
    offer = offer_from(tools, None, tool_choice="required" if required else "auto", parallel=parallel)
    special = tokenizer.special_ids
    grammar = call_grammar(offer, HERMES, special_ids=special)
    constraint = book.constraint_from(grammar, (tokenizer.eos_id,), tokens=marker_ids(HERMES, special))
    ids = follow(constraint, choices, (tokenizer.eos_id,), 600)
    assert constraint.problem is None
    answer = MixedAnswer(
        decoder=StreamDecoder(tokenizer), assembler=TextAssembler(tokenizer), written=HERMES.stream(), functional=None
    )
    deltas = []
    for token_id in ids:
        answer.watch(token_id)
        deltas += answer.drain()
    done = constraint.finished or constraint.accepting
    completion = Completion(ids=tuple(ids), finish_reason="stop", stop_id=None, num_prompt_tokens=1)
    reply = reply_from([*deltas, *answer.finish(completion)], parsed=answer.parsed)
    schemas = {tool["name"]: {**tool["parameters"], "additionalProperties": False} for tool in tools}
    for call in reply.tool_calls:
        jsonschema.validate(call.arguments, schemas[call.name])
    if done:
        assert reply.parsed and (bool(reply.tool_calls) or not required)
        assert reply.finish_reason == ("tool_calls" if reply.tool_calls else "stop")
    if not parallel:
        assert len(reply.tool_calls) <= 1


def test_text_ends_where_the_marker_begins_and_calls_end_the_answer(book: GrammarBook, tokenizer: Tokenizer) -> None:
    offer = offer_from([{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}], None)
    grammar = call_grammar(offer, HERMES, special_ids=tokenizer.special_ids)

    letters = {tokenizer.token_bytes(index): index for index in reversed(range(tokenizer.vocab_size))}

    def goes(text: str) -> bool:
        matcher = book.constraint_from(grammar, (tokenizer.eos_id,))._matcher
        taken = [matcher.consume_token(letters[bytes([byte])]) for byte in text.encode()]
        return all(taken) and matcher.is_accepting()

    call = HERMES.opening("f") + '{"a": 5}' + HERMES.closing
    assert goes("") and goes("Well. <tool_call <tool_cal") and goes(call) and goes(f"Well.{call}\n{call}")
    assert not goes("Well. <tool_call>") and not goes(f"{call} so") and not goes(call.replace("5", '"5"'))
    assert not goes(call.replace('"f"', '"g"'))


def test_functions_that_are_too_large_together_are_a_mistake_of_the_request(book: GrammarBook) -> None:
    with pytest.raises(RequestError, match="functions together") as caught:
        book.constraint_from("start: call\ncall: none\n", (1,))
    assert (caught.value.param, caught.value.code) == ("tools", "invalid_schema")
