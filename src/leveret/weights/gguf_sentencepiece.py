"""A sentencepiece-style BPE as a GGUF file says it: pieces with scores, and no merges.

llama.cpp joins the two neighbours whose joined text is the piece with the highest score. The merges of tokenizer.json
have ranks; so a piece's score is minus the rank of the first merge that makes it. Whether both ways always end in the
same pieces is not taken on trust: `joined` does it llama.cpp's way here, and must give the tokenizer's ids on all
sample texts.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping
from typing import Any

SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
UNKNOWN_TYPE, BYTE_TYPE = 2, 6


def scores_of(content: Mapping[str, Any], size: int) -> tuple[float, ...]:
    """The score of every id: minus the rank of the merge that makes it; 0 for pieces that no merge makes."""
    vocabulary: Mapping[str, int] = content["model"]["vocab"]
    scores = [0.0] * size
    for rank, merge in enumerate(content["model"]["merges"], start=1):
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        index = vocabulary[first + second]
        scores[index] = scores[index] or -float(rank)
    return tuple(scores)


def piece_types(content: Mapping[str, Any]) -> dict[int, int]:
    """The types of the ids that are bytes, or the unknown piece."""
    vocabulary: Mapping[str, int] = content["model"]["vocab"]
    types = {index: BYTE_TYPE for piece, index in vocabulary.items() if _BYTE.fullmatch(piece)}
    if (unknown := content["model"].get("unk_token")) in vocabulary:
        types[vocabulary[unknown]] = UNKNOWN_TYPE
    return types


def joined(text: str, vocabulary: Mapping[str, int], scores: tuple[float, ...], *, space_prefix: bool) -> list[int]:
    """The ids of a text, as llama.cpp finds them."""
    if not text:
        return []
    symbols = list((SPACE if space_prefix else "") + text.replace(" ", SPACE))
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (whole := symbols[left] + symbols[right]) in vocabulary:
            heapq.heappush(queue, (-scores[vocabulary[whole]], left, right, whole))

    for left in range(len(symbols) - 1):
        offer(left, left + 1)
    while queue:
        _, left, right, whole = heapq.heappop(queue)
        if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != whole:
            continue
        symbols[left], symbols[right] = whole, ""
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [index for symbol in symbols if symbol for index in _ids(symbol, vocabulary)]


def _ids(symbol: str, vocabulary: Mapping[str, int]) -> list[int]:
    if symbol in vocabulary:
        return [vocabulary[symbol]]
    return [vocabulary.get(f"<0x{byte:02X}>", -1) for byte in symbol.encode()]
