"""Token rows are matched by what the token is, not by its number: row i of one model may be row j of another.

Two tokenizers may hold the same tokens under other ids: the rows are put in the first model's order. They may hold
different tokens: that is refused, with examples, unless the config says which vocabulary the result has:

    first   the first model's tokens, under its ids
    union   those, then the *added* tokens of the others (functional tokens, `<|im_start|>`). A token that a tokenizer
            builds from merges cannot be carried into another one, so ordinary tokens stay what the first model has.

A model that lacks a token takes part with another's row: that of the first model in the list that has it. So a token
that only one model knows keeps that model's row to the bit, whatever the weights. Rows beyond the tokenizer (padding
up to a multiple) have no token; they are matched by number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leveret.errors import ConfigError, ShapeMismatch
from leveret.merge.sources import VOCABULARY, Source
from leveret.tokenizer.files import Tokenizer
from leveret.weights.safetensors import name_some

EXAMPLES = 5

Ids = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where one model's row for each row of the result is: which source, and which row there."""

    source: NDArray[np.int64]
    row: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How the sources' token rows become the result's."""

    size: int
    """Rows of the result."""
    rows: tuple[Rows | None, ...]
    """For each source; None: its rows are the result's, one by one."""
    added: tuple[dict[str, Any], ...] = ()
    """Entries of tokenizer.json's added_tokens that the first model's tokenizer gets."""
    notes: tuple[str, ...] = ()
    """What people should know."""


def align(sources: Sequence[Source], first: int, how: str) -> Alignment:
    """Match the rows of all sources to those of `sources[first]`; ConfigError where vocabularies differ too much."""
    counts = [_token_rows(source) for source in sources]
    known = [_ids(source.folder) for source in sources]
    notes = _without_tokenizer(sources, first, known, counts)
    ours = known[first]
    if ours is None:
        return Alignment(size=counts[first], rows=(None,) * len(sources), notes=tuple(notes))
    ids = [ours if entry is None else entry for entry in known]
    for source, entry, count in zip(sources, ids, counts, strict=True):
        _rows_exist(source, entry, count)
    others = [number for number, entry in enumerate(ids) if set(entry) != set(ours)]
    if others and how == "same":
        raise _refusal(sources, first, ids, others)
    result = dict(ours)
    added = _union(sources, ids, result) if how == "union" else ()
    size = max(counts[first], max(result.values()) + 1)
    order = [first, *(number for number in range(len(sources)) if number != first)]
    rows = tuple(_rows(number, result, size, ids, counts, order) for number in range(len(sources)))
    notes += [_lack(sources[number], ids[number], result) for number in others]
    if permuted := [sources[n].name for n, entry in enumerate(ids) if n not in others and entry != ours]:
        notes.append(f"{', '.join(permuted)}: the same tokens under other ids; rows are put in the first model's order")
    notes += [
        f"{source.name}: {count - size:,} rows without a token are left out"
        for source, count in zip(sources, counts, strict=True)
        if count > size
    ]
    return Alignment(size=size, rows=rows, added=added, notes=tuple(note for note in notes if note))


def _token_rows(source: Source) -> int:
    rows = {stored.shape[0] for name, stored in source.tensors.items() if VOCABULARY.search(name)}
    if len(rows) != 1:
        raise ShapeMismatch(f"{source.name} has {sorted(rows)} rows in its embedding and its head; expected one number")
    return rows.pop()


def _ids(folder: Path) -> Ids | None:
    return Tokenizer.load(folder).ids if (folder / "tokenizer.json").is_file() else None


def _without_tokenizer(
    sources: Sequence[Source], first: int, known: Sequence[Ids | None], counts: Sequence[int]
) -> list[str]:
    """Models without tokenizer.json are taken to have the first model's tokens, if they have as many rows."""
    notes = []
    for number, entry in enumerate(known):
        if entry is not None and known[first] is not None:
            continue
        if counts[number] != counts[first]:
            raise ConfigError(
                f"{sources[number].name} has {counts[number]} token rows, {sources[first].name} {counts[first]}, and "
                "without a tokenizer.json in both nobody knows which row is which token",
                hint="put the tokenizers beside the weights",
            )
        if entry is None:
            notes.append(f"{sources[number].name} has no tokenizer.json: its rows are taken as they stand")
    return notes


def _rows_exist(source: Source, ids: Ids, count: int) -> None:
    beyond = [token for token, index in ids.items() if index >= count]
    if beyond:
        raise ShapeMismatch(
            f"{len(beyond)} tokens of {source.name} have ids beyond its {count} rows: {name_some(beyond, EXAMPLES)}",
            hint="does the tokenizer belong to this model?",
        )


def _refusal(sources: Sequence[Source], first: int, ids: Sequence[Ids], others: Sequence[int]) -> ConfigError:
    lines = []
    for number in others:
        more, fewer = set(ids[number]) - set(ids[first]), set(ids[first]) - set(ids[number])
        parts = [f"has {len(more):,} tokens more ({name_some(more, EXAMPLES)})"] if more else []
        parts += [f"lacks {len(fewer):,} ({name_some(fewer, EXAMPLES)})"] if fewer else []
        lines.append(f"{sources[number].name} {' and '.join(parts)}")
    return ConfigError(
        f"the vocabularies differ; beside the {len(ids[first]):,} tokens of {sources[first].name},\n  "
        + "\n  ".join(lines),
        hint="vocabulary=first keeps the first model's tokens, vocabulary=union has the others' added tokens as well",
    )


def _union(sources: Sequence[Source], ids: Sequence[Ids], result: Ids) -> tuple[dict[str, Any], ...]:
    """Give the others' added tokens ids after the last one of `result`, in place; returns their entries."""
    entries: list[dict[str, Any]] = []
    ordinary: set[str] = set()
    for source, held in zip(sources, ids, strict=True):
        new = sorted(set(held) - set(result), key=lambda token: held[token])
        if not new:
            continue
        content = json.loads((source.folder / "tokenizer.json").read_text(encoding="utf-8-sig"))
        added = {entry["content"]: entry for entry in content.get("added_tokens", [])}
        ordinary |= {token for token in new if token not in added}
        for token in new:
            if token in added:
                result[token] = max(result.values()) + 1
                entries.append(added[token] | {"id": result[token]})
    if ordinary:
        raise ConfigError(
            f"{len(ordinary):,} tokens that the first model lacks are no added tokens: {name_some(ordinary, EXAMPLES)}",
            hint="their merges cannot be carried into its tokenizer: vocabulary=first leaves them out",
        )
    return tuple(entries)


def _rows(
    number: int, result: Ids, size: int, ids: Sequence[Ids], counts: Sequence[int], order: Sequence[int]
) -> Rows | None:
    """The rows of source `number`, those it lacks from the first source in `order` that has them."""
    source, row = np.full(size, -1, np.int64), np.full(size, -1, np.int64)
    unnamed = np.ones(size, dtype=bool)
    unnamed[list(result.values())] = False
    for lender in (number, *order):
        held = np.full(size, -1, np.int64)
        for token, index in result.items():
            held[index] = ids[lender].get(token, -1)
        own = np.arange(min(size, counts[lender]))
        own = own[unnamed[own] & ~np.isin(own, list(ids[lender].values()))]
        held[own] = own
        empty = (row < 0) & (held >= 0)
        source[empty], row[empty] = lender, held[empty]
    empty = row < 0  # padding that no model has as padding: any row will do
    source[empty], row[empty] = order[0], np.minimum(np.flatnonzero(empty), counts[order[0]] - 1)
    as_is = (source == number).all() and (row == np.arange(size)).all()
    return None if as_is else Rows(source=source, row=row)


def _lack(source: Source, ids: Ids, result: Ids) -> str:
    lacking, left = set(result) - set(ids), set(ids) - set(result)
    parts = [f"lacks {len(lacking):,} tokens of the result ({name_some(lacking, EXAMPLES)})"] if lacking else []
    parts += [f"has {len(left):,} that the result does not ({name_some(left, EXAMPLES)})"] if left else []
    return f"{source.name} {' and '.join(parts)}" if parts else ""
