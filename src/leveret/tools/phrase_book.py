"""The file in which a language's requests for a tool set are written down (YAML), read and checked against the tools.

    language: en
    slots:      {make_phone_call.phone_number: phone, name: person}   the kind of value of each argument
    rules:      {polite: ["please ", "could you ", ""]}               shared wording, used as <polite>
    values:     {person: ["<first_name>", "Mom"]}                     open strings: the call carries the request's words
                                                                      (they also serve as rules: <person>)
    surfaces:   {mode: {walk: ["on foot", "walking"]}}                closed sets: value -> ways to say it
    tools:      {call_contact: ["<polite>call {name}", ...]}          patterns (see phrases.py)
    shares:     {create_event: 3}                                     how often a tool is trained on, relative to the
                                                                      others (1); evaluation has all alike
    irrelevant: ["tell me a joke", ...]                               requests that no tool serves
    connectors: [" and then ", ", also "]                             between the parts of a combined request
    list_connectors: [", "]                                           the same before the last one: a, b and c
    continuations: {set_volume: {after: [...], say: [...]}}           short later parts (see continuations.py)

Times, durations, levels, dates and phone numbers need no list: the kinds of `spoken.py` say them. Every mistake (a
slot that is no argument, an unknown kind, an argument that no wording fills, a value that the tool refuses) is an error
that shows the line.

What is *held out* (used for evaluation only) is decided by a hash of the text itself, never by its place in a file or a
list: wordings (see wordings.py), and open values; but of those that are worked out from their words, as "midnight" is,
only such as have no word for themselves. That measures new ways to combine known words; requests by other people
measure more.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leveret.config import read_yaml
from leveret.errors import ToolError
from leveret.spelling import suggest
from leveret.tools.continuations import Continuation, check_followed, lines_of
from leveret.tools.phrase_checks import check_pattern
from leveret.tools.phrase_rules import PhraseRules, pick
from leveret.tools.phrases import Pattern, Slot, parse_pattern
from leveret.tools.schema import Tool, ToolSet
from leveret.tools.spoken import SPOKEN
from leveret.tools.wordings import HELD_OUT_PERCENT, PATIENCE, Wordings, is_held_out, words_of

COPIED_KINDS = frozenset(("phone",))
"""Spoken kinds whose value is the words themselves."""

LESSON_DRAWS = 4
"""A value for training is drawn so often, until it is one that must be worked out."""

_SAMPLED_VALUES = 3000
"""Draws of a spoken kind in which its words are looked for."""

SECTIONS = (
    *("language", "slots", "rules", "values", "surfaces", "tools", "shares", "irrelevant", "connectors"),
    *("list_connectors", "continuations"),
)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A drawn value: the words of the request, the value of the call, and whether the value is those very words."""

    surface: str
    value: str | int
    verbatim: bool
    calculated: bool = False
    """Whether the value must be worked out from the words."""


class PhraseBook:
    """Patterns and values of one language for one tool set."""

    def __init__(
        self,
        data: Mapping[str, Any],
        tools: ToolSet,
        *,
        source: str,
        plain_rules: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Check `data` (the parsed YAML) against `tools`.

        `plain_rules` adds rules made elsewhere, such as spans of real text: lists of texts, in which no mark counts.
        """
        self.source = source
        self.language = _language(data, source)
        rules = {**_section(data, "rules", source), **_section(data, "values", source)}
        self.rules = PhraseRules(
            {name: _lines(lines, f"{source}: rule {name}") for name, lines in rules.items()},
            source=source,
            plain=plain_rules,
        )
        self._slots: Mapping[str, str] = _section(data, "slots", source)
        _lines(list(self._slots.values()), f"{source}: slots")
        self._values = {
            kind: self._patterns(lines, f"values {kind}", slots=False)
            for kind, lines in _section(data, "values", source).items()
        }
        self._surfaces = {
            kind: {
                value: self._patterns(lines, f"surfaces {kind}.{value}", slots=False)
                for value, lines in _section(ways, None, f"{source}: surfaces {kind}").items()
            }
            for kind, ways in _section(data, "surfaces", source).items()
        }
        self.tools = {
            name: self._patterns(lines, f"tool {name}", slots=True)
            for name, lines in _section(data, "tools", source).items()
        }
        self.shares = self._shares(_section(data, "shares", source))
        self.irrelevant = self._patterns(data.get("irrelevant", ()), "irrelevant", slots=True)
        self.connectors = _connectors(data, "connectors", (" ",), source)
        self.list_connectors = _connectors(data, "list_connectors", self.connectors, source)
        self._check_all(tools)
        self.continuations = self._continuations(_section(data, "continuations", source), tools)
        self.wordings: dict[str | None, Wordings] = {
            name: Wordings(patterns) for name, patterns in (*self.tools.items(), (None, self.irrelevant))
        }
        """For each tool, and None for requests that no tool serves."""
        self._words: dict[str, frozenset[str]] = {}
        self._counts_as = self._usual_kinds()
        self.open_kinds = sorted(self._used_kinds() & set(self._values))
        """The kinds in use that are copied and have values of their own: names, messages, titles."""

    @classmethod
    def load(cls, path: Path, tools: ToolSet, *, plain_rules: Mapping[str, Sequence[str]] | None = None) -> PhraseBook:
        """Read a phrase book file. Raises ToolError or ConfigError naming the file and showing the line."""
        return cls(read_yaml(path), tools, source=str(path), plain_rules=plain_rules)

    def kind_of(self, tool: str | None, slot: Slot) -> str:
        """The kind of value that fills `slot` in a pattern of `tool` (None: in an irrelevant request)."""
        of_tool, of_any = self._slots.get(f"{tool}.{slot.argument}"), self._slots.get(slot.argument)
        kind = slot.kind or of_tool or of_any or slot.argument
        if kind in self._values or kind in self._surfaces or kind in SPOKEN[self.language]:
            return kind
        raise ToolError(
            f"{self.source}: no values of kind {kind!r}, needed by {{{slot.argument}}} of {tool or 'irrelevant'}",
            hint="add it under values or surfaces, or name another kind in slots",
        )

    def spoken_kinds(self) -> list[str]:
        """The kinds in use whose words are not their value, such as times: "half past six" is 06:30."""
        return sorted(self._used_kinds() & (set(SPOKEN[self.language]) - COPIED_KINDS))

    def _usual_kinds(self) -> dict[str, str]:
        """For a kind that only a slot names (`{name:topic}`): the kind that the argument has elsewhere.

        A value is held out for an argument, and so for all kinds that the argument can have.
        """
        return {
            slot.kind: self.kind_of(name, replace(slot, kind=None))
            for name, patterns in self.tools.items()
            for pattern in patterns
            for slot in pattern.slots
            if slot.kind is not None
        }

    def _used_kinds(self) -> set[str]:
        return {
            self.kind_of(name, slot)
            for name, patterns in self.tools.items()
            for pattern in patterns
            for slot in pattern.slots
        }

    def draw_value(self, kind: str, rng: random.Random, *, held_out: bool) -> Drawn:
        """Draw a value of `kind` from the training or the held-out split (closed sets are in both)."""
        if (ways := self._surfaces.get(kind)) is not None:
            value = pick(tuple(ways), rng)
            return Drawn(surface=self.rules.text(pick(ways[value], rng), rng), value=value, verbatim=False)
        for _ in range(PATIENCE):
            drawn = self._draw_open(kind, rng)
            if self._is_held_out(kind, drawn) == held_out:
                return drawn
        split = "held-out" if held_out else "training"
        problem = f"values of kind {kind!r} are too few to have a {split} part"
        raise ToolError(f"{self.source}: {problem}", hint="add more values")

    def draw_lesson(self, kind: str, rng: random.Random) -> Drawn:
        """Draw a value for training, where what must be worked out is seen more often than people say it."""
        drawn = self.draw_value(kind, rng, held_out=False)
        for _ in range(LESSON_DRAWS - 1 if kind in SPOKEN[self.language] else 0):
            if drawn.calculated:
                break
            drawn = self.draw_value(kind, rng, held_out=False)
        return drawn

    def draw_strange(self, kind: str, rng: random.Random) -> Drawn:
        """Draw a value of any open kind for a slot of `kind`, for training only: none that is held out for `kind`."""
        for _ in range(PATIENCE):
            drawn = self.draw_value(pick(self.open_kinds, rng), rng, held_out=False)
            if not self._hashed_out(kind, drawn):
                return drawn
        return self.draw_value(kind, rng, held_out=False)

    def _is_held_out(self, kind: str, drawn: Drawn) -> bool:
        """A value that is worked out from its words is held out only if training has each of them; digits need none."""
        if not self._hashed_out(kind, drawn):
            return False
        return drawn.verbatim or self._trained_words(kind).issuperset(_spelled(drawn.surface))

    def _trained_words(self, kind: str) -> frozenset[str]:
        if kind not in self._words:
            rng = random.Random(0)
            sample = (self._draw_open(kind, rng) for _ in range(_SAMPLED_VALUES))
            trained = (drawn.surface for drawn in sample if not self._hashed_out(kind, drawn))
            self._words[kind] = frozenset(word for surface in trained for word in _spelled(surface))
        return self._words[kind]

    def _hashed_out(self, kind: str, drawn: Drawn) -> bool:
        """Whether the hash of a value for its argument would hold it out."""
        return is_held_out(f"{self._counts_as.get(kind, kind)}: {drawn.surface.lower()}", HELD_OUT_PERCENT)

    def _draw_open(self, kind: str, rng: random.Random) -> Drawn:
        if kind in self._values:
            text = self.rules.text(pick(self._values[kind], rng), rng)
            return Drawn(surface=text, value=text, verbatim=True)
        said = SPOKEN[self.language][kind](rng)
        return Drawn(surface=said.surface, value=said.value, verbatim=kind in COPIED_KINDS, calculated=said.calculated)

    def _check(self, pattern: Pattern, tool: Tool, where: str, *, whole: bool = True) -> None:
        said = {slot.argument: self._surfaces.get(self.kind_of(tool.name, slot), {}) for slot in pattern.slots}
        check_pattern(pattern, tool, said, f"{self.source}: {where}", whole=whole)

    def _shares(self, given: Mapping[str, Any]) -> dict[str, int]:
        for name, share in given.items():
            if name not in self.tools:
                raise ToolError(f"{self.source}: shares names {name!r}, which has no patterns under tools")
            if not isinstance(share, int) or isinstance(share, bool) or share < 1:
                raise ToolError(f"{self.source}: the share of {name} is {share!r}; it must be a whole number from 1 up")
        return {name: given.get(name, 1) for name in self.tools}

    def _continuations(self, given: Mapping[str, Any], tools: ToolSet) -> dict[str, Continuation]:
        continuations = {}
        for name, entry in given.items():
            where = f"{self.source}: continuations {name}"
            if name not in self.tools:
                raise ToolError(f"{where}: names a tool that has no patterns under tools")
            after, lines = lines_of(entry, where)
            patterns = self._patterns(lines, f"continuations {name}", slots=True)
            for pattern in patterns:
                self._check(pattern, tools.get(name), f"continuations {name}", whole=False)
            check_followed(tools.get(name), after, patterns, tools, where)
            continuations[name] = Continuation(after=after, wordings=Wordings(patterns))
        return continuations

    def _patterns(self, lines: object, where: str, *, slots: bool) -> tuple[Pattern, ...]:
        where = f"{self.source}: {where}"
        patterns = tuple(parse_pattern(line, source=where) for line in _lines(lines, where))
        for pattern in patterns:
            self.rules.check(pattern, where, slots=slots)
        return patterns

    def _check_slots(self, tools: ToolSet) -> None:
        """Each name under `slots` is an argument, of a tool or of any, or one that irrelevant requests make up."""
        known = {slot.argument for pattern in self.irrelevant for slot in pattern.slots}
        for tool in tools:
            known |= {name for each in tool.parameters for name in (each.name, f"{tool.name}.{each.name}")}
        if unknown := [name for name in self._slots if name not in known]:
            near = suggest(unknown[0], sorted(known))
            hint = f"did you mean {near!r}?" if near else "a slot is named `tool.argument`, or `argument` for all tools"
            raise ToolError(f"{self.source}: slots names {unknown[0]!r}, which no tool has", hint=hint)

    def _check_all(self, tools: ToolSet) -> None:
        self._check_slots(tools)
        for name, patterns in self.tools.items():
            if name not in tools:
                hint = f"the tools are: {', '.join(tools.names)}"
                raise ToolError(f"{self.source}: there is no tool {name!r}", hint=hint)
            for pattern in patterns:
                self._check(pattern, tools.get(name), f"tool {name}")
        for pattern in self.irrelevant:
            for slot in pattern.slots:
                self.kind_of(None, slot)


def _spelled(surface: str) -> list[str]:
    return [word for word in words_of(surface) if not word.isdigit()]


def _language(data: Mapping[str, Any], source: str) -> str:
    for name in data:
        if name not in SECTIONS:
            raise ToolError(f"{source}: unknown section {name!r}", hint=f"sections: {', '.join(SECTIONS)}")
    language = data.get("language")
    if not isinstance(language, str) or language not in SPOKEN:
        raise ToolError(f"{source}: language {language!r} is not one of {', '.join(SPOKEN)}")
    return language


def _connectors(data: Mapping[str, Any], name: str, default: tuple[str, ...], source: str) -> tuple[str, ...]:
    connectors = tuple(_lines(data.get(name, default), f"{source}: {name}"))
    if not connectors:
        raise ToolError(f"{source}: {name} has no line", hint="leave it out, or put one in")
    return connectors


def _section(data: Any, name: str | None, source: str) -> Mapping[str, Any]:
    """The mapping under `name`, empty if there is none; with None, `data` itself."""
    section, where = (data, source) if name is None else (data.get(name, {}), f"{source}: {name}")
    if not isinstance(section, Mapping) or not all(isinstance(key, str) for key in section):
        raise ToolError(
            f"{where} must map names to entries", hint='put true, false and numbers in quotes: "true": [...]'
        )
    return section


def _lines(lines: object, where: str) -> Sequence[str]:
    if isinstance(lines, str) or not isinstance(lines, Sequence):
        raise ToolError(f"{where}: must be a list of lines, not {lines!r}")
    for line in lines:
        if not isinstance(line, str):
            raise ToolError(f"{where}: {line!r} is not text", hint="put the line in quotes")
    return lines
