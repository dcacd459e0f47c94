"""Seeded generation of tool-calling requests from phrase books: single, combined and irrelevant ones.

A draw is: a pattern of the wanted split, a value for each slot of the same split, then the habits of real typing (see
`typing_habits.py`). The expected calls are built along with the text, so they are right by construction: values that
are copied are read off the finished text. Training and evaluation share neither a wording nor an open value (see
`Wordings.draw` and `PhraseBook.draw_value`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError
from leveret.tools.phrase_book import Drawn, PhraseBook
from leveret.tools.phrase_checks import typed_value
from leveret.tools.phrase_rules import Piece, pick
from leveret.tools.phrases import Slot
from leveret.tools.requests import ToolRequest
from leveret.tools.schema import ToolSet
from leveret.tools.typing_habits import as_typed, final_mark
from leveret.tools.wordings import PATIENCE

Kind = Literal["single", "combined", "irrelevant"]

STRANGE_VALUES = 0.06
"""Share of the copied values in training that are of another kind: an app called "dinner with Emma". Where a value
begins and ends must be read off the wording; a model that only knows the values themselves cannot copy a new one."""

THREE_CALLS = 0.3
"""Share of the combined requests that ask for three calls; the others ask for two."""

SAME_TOOL = 0.08
"""Share of the later parts, in training, that ask for the same tool once more in words of their own."""

CONTINUED = 0.2
"""Share of the later parts, in training, that lean on the one before, where the book has words for that (see
continuations.py)."""

LISTED = 0.7
"""Share of the places before the last one where a list's connector stands: a, b and c."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One request before it is spoken: text pieces, and what was drawn for each of them that stands for a slot."""

    pieces: list[Piece]
    drawn: list[Drawn | None]
    tool: str | None
    fixed: Mapping[str, str]
    continues: bool = False
    """What it leaves out is as in the part before."""


class RequestGenerator:
    """Draws requests in one language; the same (seed, split, kind, index) always gives the same request."""

    def __init__(self, book: PhraseBook, tools: ToolSet, *, seed: int) -> None:
        """Raises ToolError when a tool's patterns are too few to have both splits."""
        self.book = book
        self.tools = tools
        self.seed = seed
        self._names = sorted(book.tools)
        rounds = range(max(book.shares.values(), default=1))
        self._turns = [name for turn in rounds for name in self._names if book.shares[name] > turn]
        self._followers = {
            name: [follower for follower, one in book.continuations.items() if name in one.after]
            for name in self._names
        }
        for name in self._names:
            for split, held_out in (("training", False), ("held-out", True)):
                if book.wordings[name].draw(random.Random(seed), held_out=held_out) is None:
                    hint = "write more patterns for it"
                    raise ToolError(f"{book.source}: tool {name} has no {split} wording", hint=hint)
        self._refuses = all(
            book.wordings[None].draw(random.Random(seed), held_out=held_out) for held_out in (False, True)
        )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of requests that the phrase book has patterns for."""
        kinds: list[Kind] = ["single"] if self._names else []
        kinds += ["combined"] if len(self._names) > 1 else []
        kinds += ["irrelevant"] if self._refuses else []
        return tuple(kinds)

    def draw(self, kind: Kind, index: int, *, held_out: bool) -> ToolRequest:
        """Request number `index` of a kind. Single requests go through the tools in turn: each has its share.

        Held-out requests have all tools alike, whatever their shares in training.
        """
        if kind not in self.kinds:
            hint = "irrelevant requests need more wordings under irrelevant, combined ones two tools"
            raise ToolError(f"{self.book.source}: no {kind} requests can be made of it", hint=hint)
        rng = random.Random(f"{self.seed}/{self.book.language}/{kind}/{held_out}/{index}")
        if kind == "combined":
            return self._combined(rng, held_out)
        turns = self._names if held_out else self._turns
        tool = turns[index % len(turns)] if kind == "single" else None
        return self._speak([self._part(tool, rng, held_out)], rng)

    def _combined(self, rng: random.Random, held_out: bool) -> ToolRequest:
        """A request of two or three parts; never the same call twice."""
        count = min(3 if rng.random() < THREE_CALLS else 2, len(self._names))
        for _ in range(PATIENCE):
            parts: list[_Part] = []
            while len(parts) < count:
                parts.append(self._next_part(parts, rng, held_out))
            request = self._speak(parts, rng)
            if all(call not in request.calls[:place] for place, call in enumerate(request.calls)):
                return request
        raise ToolError(f"{self.book.source}: combined requests repeat the same call", hint="add values or tools")

    def _next_part(self, before: Sequence[_Part], rng: random.Random, held_out: bool) -> _Part:
        names = self._names if held_out else self._turns
        if not held_out and before and (last := before[-1].tool) is not None:
            chance = rng.random()
            if chance < SAME_TOOL:
                return self._part(last, rng, held_out)
            followers = self._followers.get(last)
            if followers and chance < SAME_TOOL + CONTINUED:
                return self._part(pick(followers, rng), rng, held_out, continues=True)
        used = {part.tool for part in before}
        while (tool := pick(names, rng)) in used:
            pass
        return self._part(tool, rng, held_out)

    def _part(self, tool: str | None, rng: random.Random, held_out: bool, *, continues: bool = False) -> _Part:
        wordings = self.book.continuations[str(tool)].wordings if continues else self.book.wordings[tool]
        chosen = wordings.draw(rng, held_out=held_out)
        if chosen is None:
            raise ToolError(
                f"{self.book.source}: the wordings of {tool or 'irrelevant'} are too few", hint="add patterns"
            )
        pattern, nodes = chosen
        drawn: list[Drawn] = []

        def fill(slot: Slot) -> str:
            kind = self.book.kind_of(tool, slot)
            if not held_out and kind in self.book.open_kinds and rng.random() < STRANGE_VALUES:
                drawn.append(self.book.draw_strange(kind, rng))
            elif not held_out:
                drawn.append(self.book.draw_lesson(kind, rng))
            else:
                drawn.append(self.book.draw_value(kind, rng, held_out=True))
            return drawn[-1].surface

        pieces = self.book.rules.pieces(nodes, rng, fill)
        values = iter(drawn)
        of_pieces = [None if piece.slot is None else next(values) for piece in pieces]
        return _Part(pieces=pieces, drawn=of_pieces, tool=tool, fixed=pattern.fixed, continues=continues)

    def _speak(self, parts: Sequence[_Part], rng: random.Random) -> ToolRequest:
        """Join the parts, type them, and read the copied values off the final text."""
        pieces: list[Piece] = []
        for number, part in enumerate(parts):
            pieces += [Piece(self._connector(rng, last=number == len(parts) - 1), None)] if pieces else []
            pieces += part.pieces
        pieces = _apart(pieces)
        language = self.book.language
        typed = as_typed([piece.text for piece in pieces], [piece.slot is not None for piece in pieces], language, rng)
        query = "".join(typed).strip()
        calls: list[ToolCall] = []
        place = 0
        for part in parts:
            if part.tool is not None:
                before = calls[-1].arguments if part.continues else {}
                calls.append(self._call(part.tool, part, typed[place : place + len(part.pieces)], before))
            place += len(part.pieces) + 1  # and the connector
        return ToolRequest(query=query + final_mark(query, language, rng), calls=tuple(calls))

    def _connector(self, rng: random.Random, *, last: bool) -> str:
        return pick(self.book.connectors if last or rng.random() >= LISTED else self.book.list_connectors, rng)

    def _call(self, name: str, part: _Part, typed: Sequence[str], before: Mapping[str, Any]) -> ToolCall:
        """before: the arguments of the call that it continues."""
        tool = self.tools.get(name)
        values = {p.name: before[p.name] for p in tool.parameters if p.required and p.name in before} | dict(part.fixed)
        for text, piece, drawn in zip(typed, part.pieces, part.drawn, strict=True):
            if piece.slot is not None and drawn is not None:
                values[piece.slot.argument] = text.strip() if drawn.verbatim else drawn.value
        ordered = {p.name: typed_value(values[p.name], p) for p in tool.parameters if p.name in values}
        return ToolCall(name=name, arguments=ordered)


def _apart(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with a space where two numbers meet, or a value and a Latin word: 2030-06-27 and 14:30 are not one
    number, and the app in "打开Chrome app" is not Chromeapp.
    """
    spaced: list[Piece] = []
    last, after_value = "", False
    for piece in pieces:
        first, is_value = piece.text[:1], piece.slot is not None
        numbers = last.isdigit() and first.isdigit()
        words = _is_latin(last) and _is_latin(first) and (is_value or after_value)
        spaced.append(piece._replace(text=" " + piece.text) if numbers or words else piece)
        if piece.text:
            last, after_value = piece.text[-1], is_value
    return spaced


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
