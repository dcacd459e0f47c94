"""Marks: characters that carry a place through the rendering of a template.

A template turns many strings into one, and we must know afterwards where some of them went: what the model writes, and
which characters came from a user. So a mark is put beside them, the template copies it along, and here it is taken out
again and its place kept. Marks are noncharacters (U+FDD0 and others that Unicode keeps out of all text for such uses),
chosen for every rendering so that they do not occur in its input.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from leveret.errors import TemplateError

_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)] + [
    chr((plane << 16) | 0xFFFE | last) for plane in range(17) for last in (0, 1)
]
_ANY_NONCHARACTER = frozenset(_NONCHARACTERS)


@dataclass(frozen=True)
class Marks:
    """Three characters that occur nowhere in the input of one rendering."""

    begin: str
    """Before text the model writes."""
    end: str
    """After it."""
    untrusted: str
    """After a character that no special token may contain."""

    @classmethod
    def absent_from(cls, text: str) -> Marks:
        """Marks that `text` does not contain; TemplateError if it contains nearly every noncharacter there is."""
        present = _ANY_NONCHARACTER.intersection(text)
        free = [character for character in _NONCHARACTERS if character not in present]
        if len(free) < 3:
            raise TemplateError("the conversation contains nearly every Unicode noncharacter; that is not text")
        return cls(free[0], free[1], free[2])


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A rendered conversation."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """The character ranges of the generation blocks, in order."""
    untrusted: frozenset[int]
    """Characters that are not part of a special token whatever stands around them."""


def without_marks(marked: str, marks: Marks) -> Rendered:
    """Take the marks out of a rendered text and keep their places."""
    if not any(mark in marked for mark in (marks.begin, marks.untrusted)):
        return Rendered(text=marked, spans=(), untrusted=frozenset())
    pieces: list[str] = []
    starts: list[int] = []
    spans: list[tuple[int, int]] = []
    untrusted: set[int] = set()
    length = 0
    for piece in re.split(f"([{marks.begin}{marks.end}{marks.untrusted}])", marked):
        if piece == marks.begin:
            starts.append(length)
        elif piece == marks.end:
            spans.append((starts.pop(), length))
        elif piece == marks.untrusted:
            untrusted.add(length - 1)
        else:
            pieces.append(piece)
            length += len(piece)
    return Rendered(text="".join(pieces), spans=tuple(spans), untrusted=frozenset(untrusted))
