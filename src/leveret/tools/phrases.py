"""The pattern language of phrase books: a line of text with alternatives and slots, of which many texts can be drawn.

    (please |)(call|ring) {name}( now|)       ( | ) chooses, an empty choice is allowed, groups nest
    <polite> call {name}                      <rule> draws from a shared rule, which is itself a list of patterns
    mute everything => level=0                what follows => are arguments that the wording alone fixes,
                                              unless a slot of the drawn choices fills them
    {name} {other:person}                     {argument:kind} names the kind of value when it is not the default

A line becomes a tree of nodes: a stretch of text, a slot, a reference to a rule, a choice between sequences of nodes.
`phrase_rules.py` draws texts from the trees, `phrase_book.py` holds all lines of one language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from leveret.errors import ToolError

_TOKEN = re.compile(r"[(|)]|<[a-z_]+>|\{[a-z_]+(?::[a-z_]+)?\}|[^(|)<>{}]+")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place in a pattern to be filled with a value."""

    argument: str
    kind: str | None
    """None means: the kind that the phrase book declares for this argument."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A place in a pattern to be filled from a shared rule."""

    rule: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Alternatives of which one is drawn."""

    options: tuple[tuple[Node, ...], ...]


Node = str | Slot | Reference | Choice


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """One parsed line of a phrase book."""

    text: str
    nodes: tuple[Node, ...]
    fixed: Mapping[str, str]
    """Arguments that the wording fixes, as written after `=>`; a slot for the same argument comes first."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, those in different options of a choice included."""
        return tuple(node for node in walk(self.nodes) if isinstance(node, Slot))

    @property
    def ways(self) -> frozenset[tuple[str, ...]]:
        """The arguments that slots fill, in order, for each way through the choices."""
        return _ways(self.nodes)


def parse_pattern(line: str, *, source: str = "pattern") -> Pattern:
    """Read one pattern. Raises ToolError naming `source` and the column for unbalanced or stray marks."""
    body, arrow, tail = line.partition("=>")
    tokens = _tokens(body.strip() if arrow else body, source)
    nodes = _parse_sequence(tokens, source, line, nested=False)
    return Pattern(text=line, nodes=nodes, fixed=_parse_fixed(tail, source, line))


def walk(nodes: Sequence[Node]) -> Iterator[Node]:
    """Every node of a tree, choices before their options."""
    for node in nodes:
        yield node
        if isinstance(node, Choice):
            for option in node.options:
                yield from walk(option)


def _parse_fixed(tail: str, source: str, line: str) -> dict[str, str]:
    fixed: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in tail.split(";"))):
        key, equals, value = item.partition("=")
        if not equals:
            raise ToolError(f"{source}: {item!r} after => is not of the form argument=value, in: {line}")
        fixed[key.strip()] = value.strip()
    return fixed


def _tokens(body: str, source: str) -> list[str]:
    """The marks, slots, references and stretches of text, in reverse: the parser pops them off the end."""
    tokens, position = [], 0
    while position < len(body):
        match = _TOKEN.match(body, position)
        if match is None:
            raise ToolError(
                f"{source}: cannot read {body[position : position + 12]!r} at column {position + 1} of: {body}",
                hint="slots are {name} or {name:kind}, rules <name>, in lower case letters and underscores",
            )
        tokens.append(match.group())
        position = match.end()
    return tokens[::-1]


def _parse_sequence(tokens: list[str], source: str, line: str, *, nested: bool) -> tuple[Node, ...]:
    nodes: list[Node] = []
    while tokens:
        if tokens[-1] in ("|", ")"):
            if nested:
                return tuple(nodes)
            raise ToolError(f"{source}: {tokens[-1]!r} without an opening ( in: {line}")
        token = tokens.pop()
        nodes.append(_parse_choice(tokens, source, line) if token == "(" else _leaf(token))
    if nested:
        raise ToolError(f"{source}: an opening ( is never closed in: {line}")
    return tuple(nodes)


def _parse_choice(tokens: list[str], source: str, line: str) -> Choice:
    options = []
    while True:
        options.append(_parse_sequence(tokens, source, line, nested=True))
        if tokens.pop() == ")":
            return Choice(options=tuple(options))


def _leaf(token: str) -> Node:
    if token.startswith("<"):
        return Reference(rule=token[1:-1])
    if token.startswith("{"):
        argument, _, kind = token[1:-1].partition(":")
        return Slot(argument=argument, kind=kind or None)
    return token


def _ways(nodes: Sequence[Node]) -> frozenset[tuple[str, ...]]:
    ways: frozenset[tuple[str, ...]] = frozenset(((),))
    for node in nodes:
        if isinstance(node, Slot):
            ways = frozenset((*way, node.argument) for way in ways)
        elif isinstance(node, Choice):
            ends = frozenset[tuple[str, ...]]().union(*(_ways(option) for option in node.options))
            ways = frozenset(way + end for way in ways for end in ends)
    return ways
