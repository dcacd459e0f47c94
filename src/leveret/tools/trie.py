"""The vocabulary as a trie of bytes: all tokens that fit an automaton are found in one walk.

Built once for a tokenizer and shared by all requests. Special tokens are left out: they are no text and have their own
places in a call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from leveret.errors import TokenizerError, ToolError
from leveret.tokenizer.files import Tokenizer

_NEEDED_BYTES = (*range(0x20, 0x80), *range(0x80, 0xC0), *range(0xC2, 0xF5))


class TrieNode:
    """The tokens whose bytes end here, and what may follow."""

    __slots__ = ("children", "ids")

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.children: dict[int, TrieNode] = {}


class VocabularyTrie:
    """All ordinary tokens of a tokenizer by their bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ToolError when some byte of UTF-8 text is no token: a constrained answer could then get stuck."""
        self.token_bytes = dict(_ordinary_tokens(tokenizer))
        self.root = _build(self.token_bytes.items())
        crossing = ((number, text) for number, text in self.token_bytes.items() if b'"' in text[:-1])
        self.crossing_root = _build(crossing)
        """Only the tokens that go on after a quote: the few that can end a string and begin what follows."""
        self.longest_bytes = max((len(text) for text in self.token_bytes.values()), default=0)
        missing = [byte for byte in _NEEDED_BYTES if byte not in self.root.children or not self.root.children[byte].ids]
        if missing:
            raise ToolError(
                f"the tokenizer has no token for {len(missing)} single bytes, the first is 0x{missing[0]:02x}",
                hint="constrained tool calls need a byte-level tokenizer or one with byte fallback",
            )


def _ordinary_tokens(tokenizer: Tokenizer) -> Iterator[tuple[int, bytes]]:
    for number in range(tokenizer.vocab_size):
        if not tokenizer.is_special(number):
            with contextlib.suppress(TokenizerError):  # a number that is no token
                yield number, tokenizer.token_bytes(number)


def _build(tokens: Iterable[tuple[int, bytes]]) -> TrieNode:
    root = TrieNode()
    for number, text in tokens:
        node = root
        for byte in text:
            node = node.children.setdefault(byte, TrieNode())
        if text:
            node.ids.append(number)
    return root
