"""Wordings that ask for two tools at once: what a phrase book should not say, and nobody sees in a thousand lines.

Both `start {name}` for opening an app and `start {name}` for playing music are natural, but "start blue receipt" then
has two right answers, as long as nobody knows what blue receipt is. A model trained on both learns neither, and an
evaluation counts one of them as wrong. Two wordings are the same here when their words are, with any value of an open
kind in its place, without shared rules at either end that may say nothing (`<polite>`), and with one draw of those
between (`open <the>{name}`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from leveret.tools.phrase_book import PhraseBook
from leveret.tools.phrase_rules import skeleton
from leveret.tools.phrases import Node, Reference, Slot

VALUE = "{}"


def shared_wordings(book: PhraseBook) -> Mapping[str, Sequence[str]]:
    """Wording (`start {}`) -> the tools that it asks for, two or more, among wordings drawn of every pattern."""
    rng = random.Random(0)
    tools_of: dict[str, set[str]] = {}
    for tool in book.tools:
        for nodes in book.wordings[tool].sample():
            frame = _frame(book, tool, nodes, rng)
            if VALUE in frame:
                tools_of.setdefault(frame, set()).add(tool)
    return {frame: sorted(tools) for frame, tools in sorted(tools_of.items()) if len(tools) > 1}


def _frame(book: PhraseBook, tool: str, nodes: Sequence[Node], rng: random.Random) -> str:
    kept = list(nodes)
    while kept and _may_be_silent(book, kept[0]):
        del kept[0]
    while kept and _may_be_silent(book, kept[-1]):
        del kept[-1]
    return "".join(_mark(book, tool, node, rng) for node in kept).strip().lower()


def _may_be_silent(book: PhraseBook, node: Node) -> bool:
    return isinstance(node, Reference) and book.rules.may_be_empty(node.rule)


def _mark(book: PhraseBook, tool: str, node: Node, rng: random.Random) -> str:
    if _may_be_silent(book, node):
        return book.rules.drawn(node, rng)
    if isinstance(node, Slot) and book.kind_of(tool, node) in book.open_kinds:
        return VALUE
    return skeleton([node])
