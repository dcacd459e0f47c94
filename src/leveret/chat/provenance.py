"""Who wrote which character: the reason user text can never become a special token.

A rendered conversation is one string, in which `<round_end>` from the template and `<round_end>` typed by a user look
the same. So before rendering, untrusted text that could take part in a special token gets a mark (a noncharacter) after
one of its characters; the template copies it along; after rendering the mark says "no special token contains the
character before me". Three cases need a mark, and all other text is left alone, so that templates which look at their
input (`content.strip()`, `'</think>' in content`) see it as it is:

* a whole special token inside the text: its first character;
* an end that could be completed by what follows (`...<round_`), or a beginning that completes what stands before
  (`end>...`): the outermost character, and the outermost one that is not a space;
* a text that is the middle of a special token: its last character.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

UNCHANGED_KEYS = frozenset({"role", "type", "id", "tool_call_id"})
"""Keys whose values templates compare with names: only whole special tokens are marked in them."""


class Guard:
    """Marks and finds one vocabulary's special tokens."""

    def __init__(self, special_tokens: tuple[str, ...]) -> None:
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._beginnings = frozenset(token[:size] for token in special_tokens for size in range(1, len(token)))
        self._endings = frozenset(token[-size:] for token in special_tokens for size in range(1, len(token)))
        self._all = longest_first
        self._longest = len(longest_first[0]) if longest_first else 0

    def mark(self, value: Any, mark: str, *, edges: bool = True) -> Any:
        """A copy of a JSON value with marks in its texts, keys included."""
        if isinstance(value, str):
            return self._mark_text(value, mark, edges)
        if isinstance(value, Mapping):
            return {
                self.mark(key, mark, edges=False): self.mark(inner, mark, edges=edges and key not in UNCHANGED_KEYS)
                for key, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.mark(inner, mark, edges=edges) for inner in value]
        return value

    def find(self, text: str, untrusted: Collection[int]) -> Iterator[tuple[int, int]]:
        """The ranges of special tokens in `text`, leftmost and longest, that hold no untrusted character."""
        position = 0
        while match := self._any.search(text, position):
            if any(index in untrusted for index in range(match.start(), match.end())):
                position = match.start() + 1
            else:
                yield match.span()
                position = match.end()

    def _mark_text(self, text: str, mark: str, edges: bool) -> str:
        places = set(self._whole_tokens(text))
        if edges and text:
            places |= self._edges(text, 0, len(text))
            core = text.strip()
            if core and len(core) != len(text):
                start = text.index(core)
                places |= self._edges(text, start, start + len(core))
        if not places:
            return text
        return "".join(character + mark * (index in places) for index, character in enumerate(text))

    def _whole_tokens(self, text: str) -> Iterator[int]:
        position = 0
        while match := self._any.search(text, position):
            yield match.start()
            position = match.start() + 1

    def _edges(self, text: str, start: int, end: int) -> set[int]:
        places = set()
        reach = min(self._longest, end - start)
        if any(text[end - size : end] in self._beginnings for size in range(1, reach + 1)):
            places.add(end - 1)
        if any(text[start : start + size] in self._endings for size in range(1, reach + 1)):
            places.add(start)
        if end - start < self._longest and any(text[start:end] in token for token in self._all):
            places.add(end - 1)
        return places


@lru_cache(maxsize=64)
def guard_for(special_tokens: tuple[str, ...]) -> Guard:
    """The guard of a vocabulary's special tokens, kept because building it again for every message would be slow."""
    return Guard(special_tokens)
