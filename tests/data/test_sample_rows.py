"""Rows of whole samples: labels, weights and passes land where they are predicted, and losses are counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from leveret.data.mixture import Mixture
from leveret.data.packing import IGNORED, Sample
from leveret.data.sample_rows import pack_samples
from leveret.trainer.batches import batch_of


def sample(ids: list[int], *, key: str = "s", trained_from: int = 1) -> Sample:
    return Sample(ids=ids, mask=[place >= trained_from for place in range(len(ids))], key=key)


def test_a_label_takes_the_place_of_the_id_that_it_stands_for() -> None:
    one = replace(sample([5, 6, 7, 8], trained_from=2), labels=[5, 6, 99, 8])
    row = pack_samples([one], 6).row(0)
    assert row.input_ids.tolist() == [5, 6, 7, 8, 0, 0]
    assert row.targets.tolist() == [IGNORED, 99, 8, IGNORED, IGNORED, IGNORED]


def test_weights_stand_with_the_target_they_weigh_and_are_one_elsewhere() -> None:
    light = replace(sample([5, 6, 7], key="light"), weights=[9.0, 0.5, 0.25])
    packed = pack_samples([light, sample([1, 2], key="plain")], 6)
    row = packed.row(0)
    assert packed.key(0) == "light + plain"
    assert row.weights is not None and row.weights.tolist() == [0.5, 0.25, 1, 1, 1, 1]
    assert pack_samples([sample([1, 2])], 6).row(0).weights is None


def test_a_batch_multiplies_weights_of_places_with_weights_of_ids() -> None:
    light = pack_samples([replace(sample([3, 1, 2]), weights=[1.0, 0.5, 1.0])], 3).row(0)
    plain = pack_samples([sample([3, 2, 1])], 3).row(0)
    of_ids = torch.tensor([1.0, 1.0, 4.0, 1.0])
    batch = batch_of([light, plain], ["a", "b"], token_weights=of_ids)
    assert batch.weights is not None and batch.weights[:, :2].tolist() == [[0.5, 4.0], [4.0, 1.0]]
    assert batch.total_weight == 9.5
    alone = batch_of([light, plain], ["a", "b"]).weights
    assert alone is not None and alone[:, :2].tolist() == [[0.5, 1.0], [1.0, 1.0]]
    assert batch_of([plain], ["b"]).weights is None


def test_lost_tokens_are_counted_whether_dropped_or_cut() -> None:
    samples = [sample(list(range(5))), sample(list(range(30)))]
    assert pack_samples(samples, 16, on_long="drop").report.num_tokens_lost == 30
    assert pack_samples(samples, 16, on_long="truncate").report.num_tokens_lost == 14
    assert pack_samples(samples, 32).report.num_tokens_lost == 0


def test_truncation_cuts_labels_and_weights_with_the_ids() -> None:
    long = replace(sample(list(range(9))), labels=list(range(10, 19)), weights=[0.5] * 9)
    (cut,) = pack_samples([long], 4, on_long="truncate").samples
    assert (list(cut.ids), list(cut.labels or ()), list(cut.weights or ())) == (
        [0, 1, 2, 3],
        [10, 11, 12, 13],
        [0.5] * 4,
    )


def test_each_pass_reads_its_own_form_and_rows_hold_the_longest() -> None:
    plain = [sample([1, 2, 3], key="a"), sample([4, 5, 6], key="b")]
    first = [sample([1, 2, 3, 33], key="a"), sample([4, 5, 6], key="b")]
    second = [sample([1, 2, 3], key="a"), sample([4, 5, 6, 66], key="b")]
    packed = pack_samples(plain, 7, passes=[first, second])
    assert len(packed) == 2, "3 + 4 tokens fit into 7 in each pass, but the longest forms are 4 and 4"
    assert [packed.key(row) for row in range(2)] == ["a", "b"]
    assert packed.row(0).input_ids[:4].tolist() == [1, 2, 3, 33]
    assert packed.row(0, turn=1).input_ids[:4].tolist() == [1, 2, 3, 0]
    assert packed.row(1, turn=1).input_ids[:4].tolist() == [4, 5, 6, 66]
    assert np.array_equal(packed.row(1, turn=2).input_ids, packed.row(1, turn=0).input_ids)


def test_a_form_that_does_not_fit_gives_way_to_the_sample_itself() -> None:
    whole, longer = sample([1, 2, 3, 4], key="a"), sample([1, 2, 30, 31, 4], key="a")
    assert pack_samples([whole], 4, passes=[[longer]]).row(0).input_ids.tolist() == [1, 2, 3, 4]
    assert pack_samples([whole], 5, passes=[[longer]]).row(0).input_ids.tolist() == [1, 2, 30, 31, 4]


@pytest.mark.parametrize(("weight", "num_passes"), [(1.0, 3), (0.5, 3), (2.0, 2)])
def test_a_mixture_gives_each_pass_over_a_source_its_form(weight: float, num_passes: int) -> None:
    plain = [sample([number, 1, 1, 1], key=str(number)) for number in range(4)]
    passes = [[sample([number, 1, 1, turn], key=str(number)) for number in range(4)] for turn in range(3)]
    mixture = Mixture([(pack_samples(plain, 4, passes=passes), weight)], seed=3)
    seen = [mixture.row(place).input_ids.tolist() for place in range(4 * num_passes)]
    assert sorted((ids[3], ids[0]) for ids in seen) == [
        (turn, number) for turn in range(num_passes) for number in range(4)
    ]
