"""The grammar of calls that are written as text, made of a dialect's pieces and the schemas of the functions.

    auto        text | text "<tool_call>" ... call (between call)*       the text ends where the marker begins
    required    call (between call)*
    one call    the same without what follows the first

An answer of a given form that may also be calls is `form | calls`: JSON or a call, never a text. A marker that is a
special token of the tokenizer is written as that token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from leveret.engine.grammar import json_rule
from leveret.engine.structure import Structure
from leveret.engine.tool_offer import Offer
from leveret.tools.dialects import Dialect

MAX_CALLS = 8
"""Most written calls in an answer."""


def call_grammar(
    offer: Offer,
    dialect: Dialect,
    *,
    special_ids: Mapping[str, int],
    prefix: str = "",
    form: Structure | None = None,
) -> str:
    """The grammar of an answer with these calls, in Lark's notation as llguidance has it.

    `form` (JSON) is what the answer has when it is not calls; `prefix` is then written in front of it.
    """
    words = _Words(special_ids)
    common = _shared_start(dialect, [declared.name for declared in offer.declared])
    more = f"(between call){{0,{MAX_CALLS - 1}}}" if offer.parallel else ""
    rules = [
        f"call: {words.spell(common)} arguments",
        f"between: {words.spell(dialect.between)}",
        "arguments: " + " | ".join(_arguments(declared, dialect, common, words) for declared in offer.declared),
        f"calls: {words.spell(dialect.before)} call {more} {words.spell(dialect.after)}",
    ]
    if offer.required:
        return "\n".join(["start: calls", *rules, ""])
    if form is not None:
        return "\n".join([f"start: {words.spell(prefix)} {json_rule(json.loads(form.source))} | calls", *rules, ""])
    marker = dialect.start_marker
    whole = f"{dialect.before}{common}"
    lazy = "" if marker in special_ids else "[lazy]"
    rules += [
        f"head{lazy}: TEXT {words.spell(marker)}",
        f"first: {words.spell(whole[len(marker) :])} arguments",
        "TEXT: /(.|\\n)*/",
    ]
    return "\n".join([f"start: TEXT | head first {more} {words.spell(dialect.after)}", *rules, ""])


def marker_ids(dialect: Dialect, special_ids: Mapping[str, int]) -> frozenset[int]:
    """The ids of the markers of a dialect that are special tokens: an answer may hold these and must show them."""
    text = f"{dialect.before}{dialect.opening('x')}{dialect.closing}{dialect.after}"
    return frozenset(index for token, index in special_ids.items() if token and token in text)


class _Words:
    """Texts as the grammar writes them: quoted, and special tokens by their numbers."""

    def __init__(self, special_ids: Mapping[str, int]) -> None:
        self._ids = special_ids
        longest_first = sorted(filter(None, special_ids), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def spell(self, text: str) -> str:
        parts: list[str] = []
        position = 0
        for match in self._pattern.finditer(text):
            parts += [_quoted(text[position : match.start()]), f"<[{self._ids[match[0]]}]>"]
            position = match.end()
        return " ".join(filter(None, [*parts, _quoted(text[position:])]))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _shared_start(dialect: Dialect, names: Iterable[str]) -> str:
    """What all calls begin with, up to the name."""
    openings = [dialect.opening(name) for name in names] + [dialect.opening("x"), dialect.opening("y")]
    first, last = min(openings), max(openings)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _arguments(declared: Any, dialect: Dialect, common: str, words: _Words) -> str:
    opening = words.spell(dialect.opening(declared.name)[len(common) :])
    return f"{opening} {json_rule(json.loads(declared.schema.source))} {words.spell(dialect.closing)}"
