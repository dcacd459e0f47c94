"""Packing: documents in one row are as if alone, and nothing is lost or trained twice."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.data.examples import Document
from leveret.data.packing import IGNORED, PackedRows, Row, Sample, stream_rows
from leveret.data.sample_rows import pack_samples
from leveret.data.shards import build_shards
from leveret.errors import DataError, NothingToTrain
from leveret.tokenizer.files import Tokenizer


def sample(number: int, length: int, trained_from: int = 1) -> Sample:
    """A sample whose ids say which sample and place they are."""
    return Sample(
        ids=[number * 1000 + place for place in range(length)],
        mask=[place >= trained_from for place in range(length)],
        key=f"s{number}",
    )


def check(row: Row) -> None:
    """What must hold in every row."""
    for array in (row.input_ids, row.targets, row.positions, row.document_ids):
        assert array.dtype == np.int32 and array.shape == row.input_ids.shape
    real = row.document_ids >= 0
    assert not real[np.argmin(real) :].any() or real.all()  # padding only at the end
    assert (row.targets[~real] == IGNORED).all()
    for document in np.unique(row.document_ids[real]):
        (places,) = np.nonzero(row.document_ids == document)
        assert places.tolist() == list(range(places[0], places[-1] + 1))
        assert row.positions[places].tolist() == list(range(len(places)))


def pairs(rows: PackedRows) -> Counter[tuple[int, int]]:
    """Every (id, id to predict) that is trained."""
    found: Counter[tuple[int, int]] = Counter()
    for index in range(len(rows)):
        row = rows.row(index)
        check(row)
        trained = row.targets != IGNORED
        found.update(zip(row.input_ids[trained].tolist(), row.targets[trained].tolist(), strict=True))
    return found


@given(st.lists(st.integers(2, 16), min_size=1, max_size=40), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_packed_samples_train_exactly_what_they_train_alone(lengths: list[int], trained_from: int) -> None:
    samples = [sample(number, length, min(trained_from, length - 1)) for number, length in enumerate(lengths)]
    packed = pack_samples(samples, 16)
    alone: Counter[tuple[int, int]] = Counter()
    for one in samples:
        alone.update(pairs(pack_samples([one], 16)))
        expected = [(one.ids[i], one.ids[i + 1]) for i in range(len(one.ids) - 1) if one.mask[i + 1]]
        assert all(alone[pair] for pair in expected)
    assert pairs(packed) == alone
    assert packed.report.num_trained_tokens == alone.total() == sum(one.num_trained for one in samples)
    assert sorted(key for row in range(len(packed)) for key in packed.key(row).split(" + ")) == sorted(
        one.key for one in samples
    )
    assert len(packed) <= len(samples)


def test_best_fit_fills_rows_that_fit_exactly() -> None:
    packed = pack_samples([sample(number, length) for number, length in enumerate([3, 10, 6, 7, 4, 2])], 16)
    assert len(packed) == 2
    assert sorted(packed.key(0).split(" + ")) == ["s1", "s2"]


@pytest.mark.parametrize("length", [2, 3, 7, 16, 1000])
@pytest.mark.parametrize("characters", [1, 10_000])
def test_stream_rows_train_every_next_token_pair_of_every_document_once(
    length: int, characters: int, documents: list[Document], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shards = build_shards(documents, tokenizer, tmp_path, shard_characters=characters)
    rows = stream_rows(shards, length)
    alone: Counter[tuple[int, int]] = Counter()
    for index in range(shards.num_documents):
        ids = shards.document(index).tolist()
        alone.update(itertools.pairwise(ids))
    assert pairs(rows) == alone
    real = np.concatenate([row.input_ids[row.document_ids >= 0] for row in map(rows.row, range(len(rows)))])
    alone_at_the_end = (shards.num_tokens - 1) % length == 0  # the last token predicts nothing and needs no row
    assert real.tolist() == shards.tokens(0, shards.num_tokens - alone_at_the_end).tolist()


def test_every_row_trains_something_wherever_the_text_ends(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = build_shards([Document(text="the hare and the hound", source="t:0")], tokenizer, tmp_path)
    for length in range(2, shards.num_tokens + 2):
        rows = stream_rows(shards, length)
        assert all((rows.row(index).targets != IGNORED).any() for index in range(len(rows)))
    assert len(stream_rows(shards, shards.num_tokens - 1)) == 1
    nothing = build_shards([Document(text="", source="t:0")], tokenizer, tmp_path / "one")
    assert (nothing.num_tokens, len(stream_rows(nothing, 4))) == (1, 0)


def test_the_end_of_a_document_predicts_nothing(
    documents: list[Document], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = stream_rows(build_shards(documents, tokenizer, tmp_path), 16)
    for row in map(rows.row, range(len(rows))):
        assert (row.targets[row.input_ids == tokenizer.eos_id] == IGNORED).all()
        assert tokenizer.eos_id in row.targets or tokenizer.eos_id not in row.input_ids[1:]


def test_the_first_token_is_never_trained_even_if_marked() -> None:
    one = Sample(ids=[5, 6], mask=[True, True], key="x")
    assert one.num_trained == 1
    row = pack_samples([one], 4).row(0)
    assert row.targets.tolist() == [6, IGNORED, IGNORED, IGNORED]
    assert row.document_ids.tolist() == [0, 0, -1, -1]


def test_long_samples_are_refused_dropped_or_cut_and_counted() -> None:
    samples = [sample(0, 5), sample(1, 30)]
    with pytest.raises(DataError, match=r"s1: 30 tokens .* row of 16"):
        pack_samples(samples, 16)
    dropped = pack_samples(samples, 16, on_long="drop").report
    assert (dropped.num_samples, dropped.num_dropped_long) == (1, 1)
    cut = pack_samples(samples, 16, on_long="truncate")
    assert (cut.report.num_samples, cut.report.num_truncated, cut.report.num_tokens) == (2, 1, 21)


def test_a_sample_that_trains_nothing_is_refused_or_counted() -> None:
    nothing = sample(0, 5, trained_from=5)
    cut_away = sample(1, 30, trained_from=20)
    with pytest.raises(NothingToTrain, match="s0: none of its 5 tokens"):
        pack_samples([nothing], 16)
    with pytest.raises(NothingToTrain, match="s1: none of its 16"):
        pack_samples([cut_away], 16, on_long="truncate")
    report = pack_samples([nothing, cut_away, sample(2, 4)], 16, on_long="truncate", on_untrained="drop").report
    assert (report.num_samples, report.num_dropped_untrained, report.num_truncated) == (1, 2, 1)
    with pytest.raises(NothingToTrain, match="none of 1 samples is left"):
        pack_samples([nothing], 16, on_untrained="drop")
