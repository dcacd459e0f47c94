"""Answers of a given form: whatever the model prefers, they have it; jsonschema and re are the judges."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, trainers

from leveret.engine.config import EngineConfig
from leveret.engine.engine import Engine
from leveret.engine.grammar import GrammarBook
from leveret.engine.grammar_constraint import GrammarConstraint
from leveret.engine.structure import Structure
from leveret.engine.text import TextModel
from leveret.errors import MissingExtra, RequestError
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe

from .conftest import TEXTS, random_decoder, tiny_config

PERSON = {
    "type": "object",
    "properties": {
        "名字": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "pets": {"type": "array", "items": {"$ref": "#/$defs/pet"}, "maxItems": 2},
    },
    "required": ["名字", "age", "pets"],
    "additionalProperties": False,
    "$defs": {"pet": {"enum": ["hare", "乌龟"]}},
}
PROPERTIES = ("name", "名字", 'a "b"', "emoji 🐢", "tab\t", "format")


@pytest.fixture(scope="module")
def book(tokenizer: Tokenizer) -> GrammarBook:
    return GrammarBook(tokenizer)


def follow(constraint: GrammarConstraint, choices: Sequence[float], stop_ids: Sequence[int], limit: int) -> list[int]:
    """Ids picked by numbers in [0, 1), until the form is complete or `limit` ids are there."""
    ids: list[int] = []
    while not constraint.finished and len(ids) < limit:
        allowed = constraint.allowed_ids()
        chosen = int(allowed[int(choices[len(ids) % len(choices)] * len(allowed))])
        if chosen in stop_ids:
            break
        constraint.advance(chosen)
        ids.append(chosen)
    return ids


def leaves() -> st.SearchStrategy[dict[str, Any]]:
    numbers = st.tuples(st.integers(-50, 50), st.integers(0, 60))
    return st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": {"x": [1, "<s>"]}}, {"type": "number"}]),
        st.sampled_from([r"^[a-c]{1,3}$", r"^(ab|哈)+$", r"^\d{2}:\d{2}$"]).map(
            lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 12}
        ),
        st.integers(0, 4).map(lambda longest: {"type": "string", "minLength": longest // 2, "maxLength": longest}),
        numbers.map(lambda ends: {"type": "integer", "minimum": ends[0], "maximum": ends[0] + ends[1]}),
        numbers.map(lambda ends: {"type": "number", "minimum": ends[0], "exclusiveMaximum": ends[0] + ends[1] + 1}),
        st.lists(st.sampled_from(["a", "b c", 'q"', "中", 3, None, True]), min_size=1, unique=True).map(
            lambda values: {"enum": values}
        ),
    )


def branches(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    lists = st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda drawn: {"type": "array", "items": drawn[0], "minItems": drawn[1], "maxItems": drawn[1] + drawn[2]}
    )
    objects = st.dictionaries(st.sampled_from(PROPERTIES), inner, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties) or ["-"])).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required & set(properties)),
                "additionalProperties": False,
            }
        )
    )
    return st.one_of(lists, objects, st.lists(inner, min_size=1, max_size=2).map(lambda any_of: {"anyOf": any_of}))


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Nested schemas, some of whose parts are references into $defs."""
    refer = st.sampled_from([{"$ref": "#/$defs/part"}])
    tree = st.recursive(st.one_of(leaves(), refer), branches, max_leaves=6)
    return st.tuples(branches(tree), leaves()).map(lambda pair: {**pair[0], "$defs": {"part": pair[1]}})


@settings(max_examples=60, deadline=None)
@given(schema=schemas(), choices=st.lists(st.floats(0, 0.999), min_size=1, max_size=40))
def test_any_choices_of_allowed_ids_give_json_of_the_schema(
    schema: dict[str, Any], choices: list[float], book: GrammarBook, tokenizer: Tokenizer
) -> None:
    stop_ids = (tokenizer.eos_id,)
    constraint = book.constraint(Structure.json(schema), stop_ids)
    text = tokenizer.decode(follow(constraint, choices, stop_ids, 400))
    assert constraint.problem is None
    if constraint.finished or constraint.accepting:
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
    else:
        assert len(text) >= 100, "only an answer that was cut off is incomplete"


@pytest.mark.parametrize("name", ["地址", "List[int]", "Pair<a, b>", "a b", "100%25", "x'y^|\\"])
def test_a_reference_may_be_written_as_the_name_is(name: str, book: GrammarBook, tokenizer: Tokenizer) -> None:
    schema = {"$ref": f"#/$defs/{name}", "$defs": {name.replace("%25", "%"): {"const": "here"}}}
    constraint = book.constraint(Structure.json(schema), (tokenizer.eos_id,))
    assert tokenizer.decode(follow(constraint, [0.0], (tokenizer.eos_id,), 20)) == '"here"'


@settings(max_examples=40, deadline=None)
@given(choices=st.lists(st.floats(0, 0.999), min_size=1, max_size=40), which=st.integers(0, 3))
def test_expressions_choices_and_grammars_hold_as_well(
    choices: list[float], which: int, book: GrammarBook, tokenizer: Tokenizer
) -> None:
    asked, pattern = [
        (Structure.of_regex(r"^\w{1,4}/[\d哈]+\.?$"), r"\w{1,4}/[\d哈]+\.?"),
        (Structure.of_choice(["yes", "yesterday", "不"]), "yes|yesterday|不"),
        (Structure.of_grammar('start: "<" NAME ">" start? "</>"\nNAME: /[a-c]+/'), r"(<[a-c]+>)+(</>)+"),
        (Structure.of_grammar('root ::= "a"+ [0-9]{2}\n'), "a+[0-9]{2}"),
    ][which]
    constraint = book.constraint(asked, (tokenizer.eos_id,))
    text = tokenizer.decode(follow(constraint, choices, (tokenizer.eos_id,), 200))
    assert re.fullmatch(pattern, text) or not (constraint.finished or constraint.accepting)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), max_tokens=st.integers(1, 90))
def test_a_model_answers_in_the_form_and_streams_the_same(seed: int, max_tokens: int, model: TextModel) -> None:
    options = {"schema": PERSON, "temperature": 1.5, "seed": seed, "max_tokens": max_tokens}
    reply = model.chat([{"role": "user", "content": "Who?"}], **options)
    if reply.finish_reason == "stop":
        jsonschema.validate(json.loads(reply.content), PERSON)
    else:
        assert reply.finish_reason == "length" and reply.usage.completion_tokens == max_tokens
    assert "".join(model.stream([{"role": "user", "content": "Who?"}], **options)) == reply.content


def test_what_is_certain_costs_no_step_of_the_model(model: TextModel) -> None:
    words = {"type": "object", "properties": {"an answer": {"const": "a long text that is known"}}}
    schema = {**words, "required": ["an answer"], "additionalProperties": False}
    before = model.engine.stats.steps
    text = model.generate("x", schema=schema)
    assert text == '{"an answer": "a long text that is known"}' and model.engine.stats.steps == before + 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guessing_tokens_changes_no_answer_of_a_form(model: TextModel, temperature: float) -> None:
    prompt = '{"名字": "ab", "age": 5, "pets": ["hare", "乌龟"]} ' * 3
    answers = []
    for speculation in ("lookup", None):
        guessing = TextModel(model.model, model.tokenizer)
        guessing.engine = Engine(model.model, EngineConfig(speculation=speculation))
        keys = {"max_tokens": 60, "temperature": temperature, "seed": 5}
        answers.append(
            [guessing.generate(prompt, schema=PERSON, **keys), guessing.generate(prompt, regex="(ab|cd)+x", **keys)]
        )
    assert answers[0] == answers[1]


def test_a_choice_is_taken_letter_by_letter_however_many_there_are(book: GrammarBook, tokenizer: Tokenizer) -> None:
    odd = ["a/b\\c", "x\ny", '"quoted"', "[a-z]+|.*", " 你好 ", "#&~-^$(){}", "tab\t"]
    texts = odd + [f"option {number}" for number in range(3000)]
    constraint = book.constraint(Structure.of_choice(texts), (tokenizer.eos_id,))
    for text in (*odd, "option 1234"):
        one = constraint.clone()
        for token_id in tokenizer.encode(text):
            assert token_id in one.allowed_ids(), text
            one.advance(token_id)
        assert one.finished or tokenizer.eos_id in one.allowed_ids()
    assert tokenizer.decode(follow(constraint, [0.3, 0.9, 0.5], (tokenizer.eos_id,), 60)) in texts


def test_rolling_back_and_cloning_return_to_the_same_point(book: GrammarBook, tokenizer: Tokenizer) -> None:
    constraint = book.constraint(Structure.json(PERSON), (tokenizer.eos_id,))
    seen = []
    for _ in range(12):
        seen.append(constraint.allowed_ids())
        constraint.advance(int(constraint.allowed_ids()[-1]))
    twin = constraint.clone()
    constraint.rollback(5)
    np.testing.assert_array_equal(constraint.allowed_ids(), seen[7])
    twin.advance(int(twin.allowed_ids()[0]))
    np.testing.assert_array_equal(constraint.allowed_ids(), seen[7])
    constraint.rollback(7)
    np.testing.assert_array_equal(constraint.allowed_ids(), seen[0])


def test_special_tokens_are_never_text(book: GrammarBook, tokenizer: Tokenizer) -> None:
    special = set(tokenizer.special_ids.values())
    for form in (Structure.of_regex(r"<.>|</s>|<api_0>"), Structure.of_grammar('start: "a" | <api_0> | "<api_0>"')):
        constraint = book.constraint(form, ())
        assert not special & set(constraint.allowed_ids().tolist())
        assert not special & set(follow(constraint, [0.7], (), 30))
    assert tokenizer.eos_id in book.constraint(Structure.of_regex("a*"), (tokenizer.eos_id,)).allowed_ids()


def test_a_form_may_end_only_where_it_is_complete(book: GrammarBook, tokenizer: Tokenizer) -> None:
    eos = tokenizer.eos_id
    constraint = book.constraint(Structure.of_regex("[a-c]{2,3}"), (eos,))
    letter = tokenizer.encode("b")[0]
    for may_end in (False, False, True):
        assert not constraint.finished and (eos in constraint.allowed_ids()) is may_end
        constraint.advance(letter)
    assert constraint.finished
    without_stop = book.constraint(Structure.of_regex("[a-c]{2,3}"), ())
    without_stop.advance(letter)
    without_stop.advance(letter)
    assert without_stop.finished, "without a stop id the first complete text is the answer"


EMPTY_FITS = [{"regex": "a*"}, {"regex": "(ab)?"}, {"grammar": 'start: "a"*'}, {"schema": {"type": "integer"}}]


@pytest.mark.parametrize("form", EMPTY_FITS, ids=str)
def test_without_a_stop_id_the_first_complete_text_that_is_not_empty_is_the_answer(form: dict[str, Any]) -> None:
    tokenizer = train_byte_bpe(TEXTS, vocab_size=300, special_tokens=["<pad>"])
    model = TextModel(random_decoder(tiny_config(tokenizer.vocab_size)), tokenizer)
    reply = model.run([model.prepare_text("Set", **form)])[0]
    assert reply.finish_reason == "stop" and reply.usage.completion_tokens <= 2
    assert re.fullmatch("a|ab|[0-9]", reply.content)


def test_with_ignore_eos_a_form_goes_on_for_as_long_as_it_can(model: TextModel) -> None:
    jobs = [model.prepare_text("Set", regex=regex, ignore_eos=True, max_tokens=7) for regex in ("a*", "(ab){0,2}")]
    long, whole = model.run(jobs)
    assert (long.content, long.finish_reason) == ("aaaaaaa", "length")
    assert (whole.content, whole.finish_reason) == ("abab", "stop")


def test_stop_ids_outside_the_vocabulary_change_nothing(book: GrammarBook, tokenizer: Tokenizer) -> None:
    form = Structure.of_regex("a*")
    for foreign in (999_999, -1, 10**30):
        allowed = book.constraint(form, (tokenizer.eos_id, foreign)).allowed_ids()
        np.testing.assert_array_equal(allowed, book.constraint(form, (tokenizer.eos_id,)).allowed_ids())


@pytest.mark.parametrize("form", [Structure.of_regex("()"), Structure.of_grammar('start: ""')])
def test_a_form_that_only_the_empty_text_has_needs_a_stop_id(book: GrammarBook, form: Structure) -> None:
    with pytest.raises(RequestError, match="no text that the model could begin"):
        book.constraint(form, ())
    assert book.constraint(form, (1,)).allowed_ids().tolist() == [1]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (
            Structure.json({"properties": {"a": {"items": {"not": {"type": "string"}}}}}),
            'schema at /properties/a/items cannot .*"not" is not',
        ),
        (Structure.json({"$defs": {"T": {"uniqueItems": True}}, "items": {"$ref": "#/$defs/T"}}), r"/\$defs/T .*uniqu"),
        (Structure.json({"properties": {"b": {"type": "string", "pattern": "(?=a)"}}}), "/properties/b .*look-around"),
        (
            Structure.json({"type": "object", "properties": {"b": {"enum": []}}, "required": ["b"]}),
            "/properties/b .*anyOf is empty",
        ),
        (Structure.json({"$ref": "#/$defs/none"}), "none' does not exist"),
        (Structure.json({"anyOf": [{"type": "strin"}]}), "/anyOf/0 .*strin"),
        (Structure.json({"$ref": "#"}), "no text"),
        (Structure.of_grammar('start: <round_end> "a"'), "no text"),
        (Structure.of_regex("(a"), "regex .*unclosed"),
        (Structure.of_grammar("begin: x"), "grammar .*start"),
        (Structure.of_grammar("root ::= x\n"), "grammar .*'x'"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_its_place(form: Structure, words: str, book: GrammarBook) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        book.constraint(form, (1,))
    assert caught.value.param == form.param and "x-guidance" not in str(caught.value)


def sentencepiece_like() -> Tokenizer:
    """As Llama 2's: a space before every text and taken off again, pieces of characters, bytes for the rest."""
    engine = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=pieces, show_progress=False)
    engine.train_from_iterator(['{"name": "hare", "age": 5} 乌龟'] * 5, trainer)
    content = json.loads(engine.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    return Tokenizer(json.dumps(content), bos_token="<s>", eos_token="</s>")


def lower_case() -> Tokenizer:
    """A byte-level tokenizer that changes what it reads, so that it cannot be asked how a text is written."""
    content = json.loads(train_byte_bpe(["NAME age 5"] * 3, vocab_size=280, special_tokens=["</s>"]).to_json())
    content["normalizer"] = {"type": "Lowercase"}
    return Tokenizer(json.dumps(content), eos_token="</s>")


@pytest.mark.parametrize("build", [sentencepiece_like, lower_case])
def test_tokenizers_that_write_otherwise_than_they_are_asked_keep_to_the_form(build: Callable[[], Tokenizer]) -> None:
    tokenizer = build()
    stop_ids = (tokenizer.eos_id,)
    book = GrammarBook(tokenizer)
    for seed in range(12):
        choices = np.random.default_rng(seed).random(30).tolist()
        ids = follow(book.constraint(Structure.json({**PERSON, "title": "Ü"}), stop_ids), choices, stop_ids, 400)
        jsonschema.validate(json.loads(tokenizer.decode(ids)), PERSON)
        text = tokenizer.decode(
            follow(
                book.constraint(Structure.of_regex(" ?A[a-c]{2} NAME x{3}"), stop_ids, prefix=""), choices, stop_ids, 50
            )
        )
        assert re.fullmatch(" ?A[a-c]{2} NAME x{3}", text)
    known = {"const": {"NAME": "an answer that is known"}}
    constraint, steps = book.constraint(Structure.json(known), stop_ids), 0
    while not constraint.finished:
        steps += len(constraint.allowed_ids()) > 1
        constraint.advance(int(constraint.allowed_ids()[0]))
    assert steps <= 2, "what is certain is skipped all the same"


def test_a_limit_of_the_library_cuts_the_answer_off_and_hurts_nobody_else(
    model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = model.prepare_text("x", schema=PERSON, max_tokens=50)
    monkeypatch.setattr(job.request.constraint, "_matcher", _Tired(job.request.constraint._matcher))
    other = model.prepare_text("x", regex="[ab]{4}")
    broken, whole = model.run([job, other])
    assert broken.finish_reason == "length" and re.fullmatch("[ab]{4}", whole.content)


class _Tired:
    """A matcher that fails at the third id."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._left = 3

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def consume_token(self, token_id: int) -> bool:
        self._left -= 1
        return self._left > 0 and self._matcher.consume_token(token_id)


def test_without_the_library_the_error_names_the_extra(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match="llguidance"):
        GrammarBook(tokenizer)
