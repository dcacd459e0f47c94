"""Mixtures: every row in its turn, in an order that needs no memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from leveret.data.mixture import Mixture
from leveret.data.packing import Sample
from leveret.data.sample_rows import SampleRows, pack_samples
from leveret.errors import DataError


def rows(count: int, first: int = 0) -> SampleRows:
    samples = [
        Sample(ids=[first + i, 1, 2, 3], mask=[False, True, True, True], key=f"{first + i}") for i in range(count)
    ]
    return pack_samples(samples, 4)


def test_every_row_comes_once_an_epoch_and_epochs_differ() -> None:
    mixture = Mixture([(rows(7), 1), (rows(5), 1)], seed=3)
    assert len(mixture) == 12
    epochs = [[mixture.row_at(epoch * 12 + place) for place in range(12)] for epoch in range(3)]
    everything = {(0, row) for row in range(7)} | {(1, row) for row in range(5)}
    assert all(set(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_weight_is_how_often_a_source_is_seen_in_an_epoch() -> None:
    mixture = Mixture([(rows(10), 2), (rows(8), 0.5)], seed=0)
    assert len(mixture) == 24
    one = Counter(mixture.row_at(place) for place in range(24))
    assert all(one[0, row] == 2 for row in range(10))
    assert sum(count for (source, _), count in one.items() if source == 1) == 4
    two = Counter(mixture.row_at(place) for place in range(48))
    assert all(two[1, row] == 1 for row in range(8))


def test_the_order_is_a_function_of_seed_and_place_alone() -> None:
    sources = [(rows(30), 1.0), (rows(20), 1.0)]
    forwards = [Mixture(sources, seed=1).row_at(place) for place in range(150)]
    fresh = Mixture(sources, seed=1)
    assert [fresh.row_at(place) for place in reversed(range(150))] == forwards[::-1]
    assert [Mixture(sources, seed=2).row_at(place) for place in range(150)] != forwards


def test_the_order_never_changes_between_versions() -> None:
    mixture = Mixture([(rows(5), 1)], seed=42)
    assert [mixture.row_at(place)[1] for place in range(10)] == [4, 2, 0, 1, 3, 0, 2, 3, 4, 1]


def test_ranks_read_disjoint_rows_that_together_are_all() -> None:
    mixture = Mixture([(rows(9), 1), (rows(7), 1)], seed=5)
    for world in (1, 2, 3, 4):
        seen = [{mixture.row_at(place) for place in range(rank, len(mixture), world)} for rank in range(world)]
        assert sum(map(len, seen)) == len(set().union(*seen)) == 16


def test_rows_and_keys_belong_together() -> None:
    mixture = Mixture([(rows(4), 1), (rows(4, first=50), 1)], seed=0)
    for place in range(8):
        assert mixture.key(place) == str(mixture.row(place).input_ids[0])


def test_wrong_sources_are_refused() -> None:
    longer = pack_samples([Sample(ids=[1, 2], mask=[True, True], key="x")], 8)
    for sources, message in [([], "nothing"), ([(rows(2), 0)], "above 0"), ([(rows(2), 1), (longer, 1)], "one length")]:
        with pytest.raises(DataError, match=message):
            Mixture(sources, seed=0)


def test_weights_that_make_an_epoch_of_billions_of_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"make an epoch of 7,000,000,005 rows out of 12") as refused:
        Mixture([(rows(7), 1e9), (rows(5), 1)], seed=0)
    assert "how often" in (refused.value.hint or "")


def test_each_order_is_made_once_an_epoch_however_many_sources_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    argsort = np.argsort
    monkeypatch.setattr(np, "argsort", lambda numbers, **how: made.append(len(numbers)) or argsort(numbers, **how))
    mixture = Mixture([(rows(3), 1.0)] * 40 + [(rows(3), 2.5)] * 10, seed=2)
    for place in range(len(mixture)):
        mixture.row_at(place)
        mixture.key(place)
    assert sorted(made) == [3] * (40 + 10 * 3) + [200], "of the 10 sources, an epoch has parts of three passes"
