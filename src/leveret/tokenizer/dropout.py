"""BPE dropout: the same text in other tokens each time, for training only.

BPE reads a word by joining neighbors, the earliest merge of its table first. With dropout (Provilkov et al. 2020,
arXiv 1910.13267) each merge that is next is passed over with probability p, and comes back into play after the next
one that is not. p = 0 is the tokenizer itself and p = 1 gives single characters; the text stays the same throughout.

The `tokenizers` library can do this too, but takes its chances from a generator that nobody can seed, so a killed run
could never repeat them. Here they come from a seed that the caller gives. The library still normalizes the text and
divides it into words; only the joining within a word is done again, in plain Python.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable, Sequence

from leveret.errors import TokenizerError
from leveret.tokenizer.files import Tokenizer

Range = tuple[int, int]
Reader = Callable[[str, bool, bool], tuple[list[int], list[Range]]]


class BpeDropout:
    """Reads texts with a tokenizer whose merges are passed over with a probability. TokenizerError if it has none."""

    def __init__(self, tokenizer: Tokenizer, probability: float) -> None:
        model = json.loads(tokenizer.to_json())["model"]
        affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        if model.get("type") != "BPE" or affixes:
            raise TokenizerError(
                "BPE dropout needs a tokenizer of the type BPE without affixes on its tokens",
                hint="leave bpe_dropout out",
            )
        pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        self.tokenizer = tokenizer
        self.probability = probability
        self._ids = tokenizer.ids
        self._tokens = {index: token for token, index in self._ids.items()}
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}

    def reader(self, seed: str) -> Reader:
        """What reads texts in place of the tokenizer; its chances follow from `seed` and the texts read before."""
        draws = random.Random(seed)

        def read(text: str, allow_special: bool, inside: bool) -> tuple[list[int], list[Range]]:
            ids, offsets, words = self.tokenizer.encode_with_words(text, allow_special=allow_special, inside=inside)
            found_ids: list[int] = []
            found_offsets: list[Range] = []
            start = 0
            while start < len(ids):
                end = start + 1
                while end < len(ids) and words[end] == words[start]:
                    end += 1
                symbols, ranges = self._symbols(ids[start:end], offsets[start:end], text)
                for first, last in _join(symbols, self._ranks, self.probability, draws):
                    found_ids.append(self._ids["".join(symbols[first:last])])
                    found_offsets.append((ranges[first][0], ranges[last - 1][1]))
                start = end
            return found_ids, found_offsets

        return read

    def _symbols(self, ids: Sequence[int], offsets: Sequence[Range], text: str) -> tuple[list[str], list[Range]]:
        """What a word is joined from, in the tokenizer's notation, and where in the text each of them stands."""
        symbols: list[str] = []
        coarse: list[Range] = []
        for index, place in zip(ids, offsets, strict=True):
            token = self._tokens[index]
            parts = [token] if self._is_whole(index, token) else list(token)
            symbols += parts
            coarse += [place] * len(parts)
        start, end = offsets[0][0], offsets[-1][1]
        characters = [(place, place + 1) for place in range(start, end)]
        if len(symbols) == len(characters):
            return symbols, characters
        of_bytes = [one for one, char in zip(characters, text[start:end], strict=True) for _ in char.encode()]
        if len(symbols) == len(of_bytes) and "▁" not in symbols:
            return symbols, of_bytes
        return symbols, coarse

    def _is_whole(self, index: int, token: str) -> bool:
        """Special tokens, single bytes of sentencepiece and the like are not made of characters."""
        return self.tokenizer.is_special(index) or any(char not in self._ids for char in token)


def _join(
    symbols: Sequence[str], ranks: dict[tuple[str, ...], int], probability: float, draws: random.Random
) -> list[tuple[int, int]]:
    """Which symbols lie together in the end, as ranges."""
    ends = [place + 1 for place in range(len(symbols))]  # of the token that starts at a place; 0 when it was joined
    starts = list(range(len(symbols)))  # of the token that ends before a place + 1
    texts = list(symbols)
    queue: list[tuple[int, int, str, str]] = []

    def offer(left: int) -> None:
        right = ends[left]
        if right < len(symbols) and (rank := ranks.get((texts[left], texts[right]))) is not None:
            heapq.heappush(queue, (rank, left, texts[left], texts[right]))

    for place in range(len(symbols) - 1):
        offer(place)
    passed: list[tuple[int, int, str, str]] = []
    while queue:
        merge = heapq.heappop(queue)
        _, left, first, second = merge
        right = ends[left]
        if not right or right >= len(symbols) or (texts[left], texts[right]) != (first, second):
            continue  # one of the two has been joined to something else
        if draws.random() < probability:
            passed.append(merge)
            continue
        for one in passed:
            heapq.heappush(queue, one)
        passed.clear()
        texts[left] += texts[right]
        ends[left], ends[right] = ends[right], 0
        starts[ends[left] - 1] = left
        offer(left)
        if left:
            offer(starts[left - 1])
    return [(start, end) for start, end in enumerate(ends) if end]
