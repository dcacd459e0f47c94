"""Grammar: an answer kept to a form, token by token, with the library llguidance.

    Structure -> grammar -> matcher, one a request -> allowed ids of every step

The library runs an Earley parser over bytes and walks the vocabulary's trie (https://github.com/guidance-ai/llguidance);
what stands here joins it to our tokenizers and our engine.

* It is told the exact bytes of every token (grammar_vocabulary.py). No text can spell a special token, and a grammar
  that names one is kept from it all the same.
* What ends an answer is known here and not there: where the grammar is satisfied the request's stop ids are allowed,
  and when nothing more can follow the request ends without one.
* Bytes that the grammar leaves no choice about (`", "age": `) are tokenized as the tokenizer would and taken without
  asking the model; the last of them only when no longer token could begin there.

Compiling is done once a form and kept; a request then costs a copy of the matcher, a step some ten microseconds.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from leveret.engine.grammar_constraint import GrammarConstraint
from leveret.engine.grammar_vocabulary import GrammarVocabulary
from leveret.engine.structure import MAX_CHARACTERS, Structure
from leveret.engine.subschemas import subschemas
from leveret.errors import RequestError
from leveret.extras import require
from leveret.tokenizer.files import Tokenizer

MAX_KEPT = 64
"""Compiled forms that are kept."""

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is written: as Python's json.dumps writes it."""


_SIGNS = frozenset("\\.+*?()|[]{}^$#&-~/")
"""What means something in an expression, or ends one."""


class GrammarBook:
    """The compiled forms of one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, num_ids: int | None = None) -> None:
        """`num_ids`: size of the model's vocabulary; tokens beyond it are never allowed.

        Raises MissingExtra when llguidance is not installed.
        """
        self._library = require("llguidance", extra="grammar", purpose="an answer of a given form")
        self._size = min(tokenizer.vocab_size, num_ids or tokenizer.vocab_size)
        self._vocabulary = self._library.LLTokenizer(
            self._library.TokenizerWrapper(GrammarVocabulary(tokenizer, self._size)), n_vocab=self._size + 1
        )
        self._special = np.zeros(self._size, dtype=bool)
        self._special[[index for index in tokenizer.special_ids.values() if index < self._size]] = True
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self.prefix = " " if tokenizer.strips_first_space else ""
        """What decoding takes off the front of an answer, so that it must be written there."""

    def constraint(
        self, structure: Structure, stop_ids: Iterable[int], *, prefix: str = "", goes_on: bool = False
    ) -> GrammarConstraint:
        """Keeps one request to a form. `prefix` is written in front of it; `goes_on`: grammar_constraint.py.

        Raises RequestError, naming the keyword and its place, when the form cannot be compiled, or fits no text.
        """
        grammar = self.grammar(structure, self.prefix + prefix)
        problem = self._problem(grammar)
        if problem:
            raise self._refusal(structure, problem)
        constraint = self.constraint_from(grammar, stop_ids, goes_on=goes_on)
        if not len(constraint.allowed_ids()) or constraint.problem is not None:
            raise self._refusal(structure, "no text that the model could begin to write fits it")
        return constraint

    def check(self, structure: Structure) -> None:
        """Raise RequestError, naming the keyword and its place, when the form cannot be compiled."""
        if problem := self._problem(self.grammar(structure)):
            raise self._refusal(structure, problem)

    def constraint_from(
        self,
        grammar: str,
        stop_ids: Iterable[int],
        *,
        parts: Iterable[Structure] = (),
        tokens: Iterable[int] = (),
        goes_on: bool = False,
    ) -> GrammarConstraint:
        """Keeps one request to a grammar in the library's notation that was made of `parts`.

        `tokens`: special tokens that it may use; `goes_on`: grammar_constraint.py. RequestError when a part cannot be
        compiled, naming its place, or all are too large together.
        """
        if problem := self._problem(grammar):
            for part in parts:
                self.check(part)
            raise RequestError(
                f"the functions together cannot be turned into a grammar: {problem}",
                param="tools",
                code="invalid_schema",
                hint="offer fewer functions at a time, or describe long enums as strings",
            )
        with self._lock:
            matcher = self._prototype(grammar).deep_copy()
        special = self._special
        if allowed := list(tokens):
            special = special.copy()
            special[allowed] = False
        return GrammarConstraint(matcher, special, stop_ids, goes_on=goes_on)

    def grammar(self, structure: Structure, prefix: str = "") -> str:
        """The form in the library's notation."""
        start = f"start: {json.dumps(prefix, ensure_ascii=False)} " if prefix else "start: "
        match structure.kind:
            case "json":
                return f"{start}{json_rule(json.loads(structure.source))}\n"
            case "choice":
                texts = "|".join(map(_escaped, json.loads(structure.source)))  # one lexeme: thousands are no trouble
                return f"{start}BODY\nBODY: /{texts}/\n"
            case "regex":
                body = self._library.regex_to_lark(_without_anchors(structure.source), use_ascii="dws")
                return f"{start}BODY\nBODY: /{body}/\n"
            case _:
                body = structure.source if structure.kind == "lark" else self._from_gbnf(structure)
                if not prefix:
                    return body
                grammars = [{"name": "main", "lark_grammar": f"{start}@body"}, {"name": "body", "lark_grammar": body}]
                return json.dumps({"grammars": grammars})

    def _from_gbnf(self, structure: Structure) -> str:
        translator = require("llguidance.gbnf_to_lark", extra="grammar", purpose="a GBNF grammar")
        try:
            lark: str = translator.gbnf_to_lark(structure.source)
        except Exception as error:  # the translator raises its own class, and others for what it does not expect
            raise RequestError(
                f"{structure.param} is not GBNF: {error}", param=structure.param, code="invalid_grammar"
            ) from None
        return lark

    def _problem(self, grammar: str) -> str:
        """Why the grammar cannot be compiled; empty when it can."""
        if len(grammar) > MAX_CHARACTERS:
            return f"it has {len(grammar):,} characters; at most {MAX_CHARACTERS:,} are compiled"
        with self._lock:
            prototype = self._prototype(grammar)
            return _in_words(prototype.get_error()) if prototype.is_error() else ""

    def _prototype(self, grammar: str) -> Any:
        if grammar not in self._kept:
            limits = self._library.LLParserLimits(verbose_errors=False)
            self._kept[grammar] = self._library.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        self._kept.move_to_end(grammar)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return self._kept[grammar]

    def _refusal(self, structure: Structure, problem: str) -> RequestError:
        place = ""
        if structure.kind == "json":
            path, problem = self._find_problem(json.loads(structure.source), problem)
            place = f" at /{'/'.join(map(str, path))}" if path else ""
        code = "invalid_schema" if structure.kind == "json" else "invalid_grammar"
        return RequestError(
            f"{structure.param}{place} cannot be turned into a grammar: {problem}",
            param=structure.param,
            code=code,
            hint="write anyOf instead of oneOf" if problem.startswith("oneOf") else None,
        )

    def _find_problem(self, schema: Mapping[str, Any], problem: str) -> tuple[tuple[str | int, ...], str]:
        """The innermost schema that cannot be compiled by itself, and why."""
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}

        def search(inner: Any, path: tuple[str | int, ...], reason: str) -> tuple[tuple[str | int, ...], str]:
            for step, child in subschemas(inner) if isinstance(inner, Mapping) else ():
                if not isinstance(child, Mapping):
                    continue
                limits = self._library.LLParserLimits(verbose_errors=False)
                grammar = f"start: {json_rule({**definitions, **child})}\n"
                wrong, messages = self._library.LLMatcher.validate_grammar_with_warnings(grammar, limits=limits)
                if wrong and "Pointer" not in messages[0]:  # only the whole schema holds what some references name
                    return search(child, (*path, *step), _in_words(messages[0]))
            return path, reason

        return search(schema, (), problem)


def json_rule(schema: Mapping[str, Any]) -> str:
    """A schema as a part of a rule."""
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_STYLE})}"


def _in_words(message: str) -> str:
    """An error of the library without the grammar that it quotes."""
    message = re.sub(r"^ *[0-9]+ \|.*$\n?|^ *\^+ *$\n?", "", message, flags=re.MULTILINE)
    message = message.partition("<backtrace>")[0]  # a limit of the library that it does not expect to meet
    message = re.sub(r"^at [0-9]+\([0-9]+\): ", "", " ".join(message.split()))
    message = message.removeprefix("failed to compile JSON schema: ")
    if unimplemented := re.fullmatch(r"Unimplemented keys: \[(.*)\]", message):
        return f"{unimplemented[1]} is not supported"
    return message


def _escaped(text: str) -> str:
    """The expression that matches this text only."""
    named = {"\n": "\\n", "\r": "\\r"}
    return "".join(named.get(letter) or (f"\\{letter}" if letter in _SIGNS else letter) for letter in text)


def _without_anchors(regex: str) -> str:
    """The expression matches the whole answer anyway."""
    body = regex.removeprefix("^")
    return body[:-1] if body.endswith("$") and not body.endswith("\\$") else body
