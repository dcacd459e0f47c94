"""Shared rules of a phrase book (`<name>`), and the drawing of texts from patterns that use them.

A drawn text is a list of *pieces*, so that the caller knows which characters came from a slot: values are copied into
the expected call exactly as they stand in the request.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from leveret.errors import ToolError
from leveret.tools.phrases import Choice, Node, Pattern, Reference, Slot, parse_pattern, walk

T = TypeVar("T")


class Piece(NamedTuple):
    """A stretch of drawn text."""

    text: str
    slot: Slot | None
    """The slot it stands for; None for the wording around it."""


def pick(options: Sequence[T], rng: random.Random) -> T:
    """One of `options`: `rng.choice` in a third of the time, and hundreds of thousands of choices are made."""
    return options[int(rng.random() * len(options))]


class PhraseRules:
    """Named lists of alternatives that patterns draw from."""

    def __init__(
        self,
        rules: Mapping[str, Sequence[str]],
        *,
        source: str,
        plain: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Parse all rules; those of `plain` are lists of texts without marks.

        Raises ToolError for an unknown reference, a rule that contains a slot, and rules that go round in a circle.
        """
        self._options: dict[str, tuple[tuple[Node, ...], ...]] = {
            name: tuple((text,) for text in texts) for name, texts in (plain or {}).items()
        }
        parsed: dict[str, tuple[Pattern, ...]] = {}
        for name, lines in rules.items():
            where = f"{source}: rule {name}"
            parsed[name] = tuple(parse_pattern(line, source=where) for line in lines)
            self._options[name] = tuple(pattern.nodes for pattern in parsed[name])
        for name, patterns in parsed.items():
            for pattern in patterns:
                self.check(pattern, f"{source}: rule {name}", slots=False)
        self._refuse_circles(parsed, source)

    def check(self, pattern: Pattern, where: str, *, slots: bool) -> None:
        """Raise ToolError when `pattern` names a rule that does not exist, or has slots where it may not."""
        for node in walk(pattern.nodes):
            if isinstance(node, Reference) and not self._options.get(node.rule):
                hint = f"rules: {', '.join(sorted(self._options))}"
                raise ToolError(f"{where}: there is no rule <{node.rule}>, used in: {pattern.text}", hint=hint)
        if not slots and pattern.slots:
            slot = f"{{{pattern.slots[0].argument}}}"
            raise ToolError(f"{where}: contains the slot {slot}, which only a tool's pattern may: {pattern.text}")
        if not slots and pattern.fixed:
            raise ToolError(f"{where}: contains =>, which only a tool's pattern may: {pattern.text}")

    def pieces(self, nodes: Sequence[Node], rng: random.Random, fill: Callable[[Slot], str]) -> list[Piece]:
        """Draw one text of `nodes`; `fill` gives the text for each slot, in order of appearance."""
        drawn: list[Piece] = []
        self._draw(nodes, rng, fill, drawn)
        return drawn

    def text(self, pattern: Pattern, rng: random.Random) -> str:
        """Draw one text of a pattern without slots."""
        return "".join(piece.text for piece in self.pieces(pattern.nodes, rng, _no_slot))

    def drawn(self, node: Node, rng: random.Random) -> str:
        """Draw one text of a node without slots."""
        return "".join(piece.text for piece in self.pieces([node], rng, _no_slot))

    def may_be_empty(self, rule: str) -> bool:
        """Whether one of the alternatives of `rule` is no text at all."""
        return any(not options for options in self._options[rule])

    def _draw(self, nodes: Sequence[Node], rng: random.Random, fill: Callable[[Slot], str], drawn: list[Piece]) -> None:
        for node in nodes:
            if isinstance(node, str):
                drawn.append(Piece(node, None))
            elif isinstance(node, Slot):
                drawn.append(Piece(fill(node), node))
            elif isinstance(node, Reference):
                self._draw(pick(self._options[node.rule], rng), rng, fill, drawn)
            else:
                self._draw(pick(node.options, rng), rng, fill, drawn)

    def _refuse_circles(self, rules: Mapping[str, Sequence[Pattern]], source: str) -> None:
        uses = {name: _references(patterns) for name, patterns in rules.items()}
        finished: set[str] = set()

        def follow(name: str, way: tuple[str, ...]) -> None:
            if name in way:
                circle = " -> ".join(f"<{one}>" for one in (*way[way.index(name) :], name))
                raise ToolError(f"{source}: rules that go round in a circle: {circle}")
            if name not in finished:
                for used in uses.get(name, ()):
                    follow(used, (*way, name))
                finished.add(name)

        for name in uses:
            follow(name, ())


def wording(nodes: Sequence[Node], rng: random.Random) -> list[Node]:
    """`nodes` with the pattern's own choices made; slots and shared rules stay as they are."""
    settled: list[Node] = []
    for node in nodes:
        settled += wording(pick(node.options, rng), rng) if isinstance(node, Choice) else [node]
    return settled


def skeleton(nodes: Sequence[Node]) -> str:
    """A wording as text, `<polite>call {name}`: what tells one phrasing from another."""
    return "".join(_mark(node) for node in nodes)


def _mark(node: Node) -> str:
    if isinstance(node, Slot):
        return f"{{{node.argument}}}"
    if isinstance(node, Reference):
        return f"<{node.rule}>"
    return node if isinstance(node, str) else "(...)"


def _references(patterns: Sequence[Pattern]) -> list[str]:
    found = (node.rule for pattern in patterns for node in walk(pattern.nodes) if isinstance(node, Reference))
    return list(dict.fromkeys(found))


def _no_slot(slot: Slot) -> str:
    raise AssertionError(f"slot {slot.argument} where the phrase book allows none")
