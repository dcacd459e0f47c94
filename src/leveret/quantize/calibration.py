"""Calibration text: the rows of tokens on which GPTQ and AWQ watch a model, and what is held out to judge them.

Texts are taken in the order of the files, one behind the other, each its own document (no token sees a neighbor's),
until there are enough tokens: an equal share from the beginning of each path, and more of the longer ones where others
are too short for theirs. A tenth is held out and never calibrated on, so that perplexity before and after says
what a stranger's text would: every tenth document, or the last tenth of each when there are fewer than ten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import torch
from torch import Tensor

from leveret.data.readers import read_documents
from leveret.engine.perplexity import WINDOW_TOKENS, Window, windows_of
from leveret.errors import DataError
from leveret.tokenizer.files import Tokenizer

HELD_OUT = 10
"""One token in so many is held out."""

MOST_CHARACTERS = 32
"""Characters of a token, at most: a long text need not be encoded whole."""


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """A row of documents, for one forward; each of (1, T)."""

    ids: Tensor
    positions: Tensor
    """Each document's own count from 0."""
    document_ids: Tensor


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What is run through the model while it is quantized."""

    rows: tuple[CalibrationRow, ...]
    held_out: tuple[Window, ...]
    documents: int
    """Documents in the rows."""

    @property
    def tokens(self) -> int:
        """Tokens in the rows."""
        return sum(row.ids.numel() for row in self.rows)


def read_calibration(
    paths: Sequence[Path], tokenizer: Tokenizer, *, row_tokens: int, most_tokens: int, held_out_tokens: int
) -> Calibration:
    """Rows of at most `row_tokens` from text files, or JSON Lines with a `text`.

    held_out_tokens: at most so many are held out; 0: nothing is. DataError when there is no text.
    """
    share = HELD_OUT / (HELD_OUT - 1) if held_out_tokens else 1.0
    documents = _documents(paths, tokenizer, int(most_tokens * share))
    kept, held = _divided(documents) if held_out_tokens else (documents, [])
    if not kept:
        raise DataError("there is no text to calibrate on", path=paths[0])
    length = min(row_tokens, WINDOW_TOKENS)
    windows = [
        window
        for number, ids in enumerate(_cut(held, held_out_tokens))
        for window in windows_of(f"held-out document {number + 1}", ids, length=length, bos_id=tokenizer.bos_id)
    ]
    begun = [ids if tokenizer.bos_id is None else [tokenizer.bos_id, *ids] for ids in kept]
    return Calibration(rows=tuple(_rows(begun, row_tokens, most_tokens)), held_out=tuple(windows), documents=len(begun))


def _documents(paths: Sequence[Path], tokenizer: Tokenizer, most_tokens: int) -> list[list[int]]:
    """The ids of the first documents of each path, `most_tokens` in all."""
    found = [_beginning(path, tokenizer, most_tokens) for path in paths]
    documents: list[list[list[int]]] = [[] for _ in paths]
    left = most_tokens
    shortest_first = sorted(range(len(paths)), key=lambda place: sum(map(len, found[place])))
    for rank, place in enumerate(shortest_first):
        documents[place] = list(_cut(found[place], left // (len(paths) - rank)))
        left -= sum(map(len, documents[place]))
    return list(chain.from_iterable(documents))


def _beginning(path: Path, tokenizer: Tokenizer, most_tokens: int) -> list[list[int]]:
    """The ids of the first documents below a path, until there are `most_tokens`."""
    documents: list[list[int]] = []
    left = most_tokens
    for document in read_documents(path):
        ids = tokenizer.encode(document.text[: MOST_CHARACTERS * left])[:left]
        if ids:
            documents.append(list(ids))
            left -= len(ids)
        if left <= 0:
            break
    return documents


def _divided(documents: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """What is calibrated on, and what is held out."""
    if len(documents) >= HELD_OUT:
        held = documents[HELD_OUT - 1 :: HELD_OUT]
        return [ids for number, ids in enumerate(documents, start=1) if number % HELD_OUT], held
    ends = [len(ids) - len(ids) // HELD_OUT for ids in documents]
    pairs = list(zip(documents, ends, strict=True))
    return [ids[:end] for ids, end in pairs], [ids[end:] for ids, end in pairs if end < len(ids)]


def _cut(documents: list[list[int]], most_tokens: int) -> Iterator[list[int]]:
    """The documents up to so many tokens."""
    left = most_tokens
    for ids in documents:
        if left < 2:
            return
        yield ids[:left]
        left -= len(ids[:left])


def _rows(documents: list[list[int]], row_tokens: int, most_tokens: int) -> Iterator[CalibrationRow]:
    """Documents behind each other in rows; one that does not fit goes on in the next row as another document."""
    ids = [token for document in documents for token in document][:most_tokens]
    starts = [0]
    for document in documents:
        starts.append(starts[-1] + len(document))
    begins = set(starts)
    for first in range(0, len(ids), row_tokens):
        last = min(first + row_tokens, len(ids))
        edges = [first, *(place for place in range(first + 1, last) if place in begins), last]
        pieces = [range(end - start) for start, end in pairwise(edges)]
        yield CalibrationRow(
            ids=torch.tensor([ids[first:last]]),
            positions=torch.tensor([[position for piece in pieces for position in piece]]),
            document_ids=torch.tensor([[number for number, piece in enumerate(pieces) for _ in piece]]),
        )
