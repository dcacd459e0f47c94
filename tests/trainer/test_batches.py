"""Batches: a pure function of the step, every row of an epoch once, the last window partial."""

from leveret.trainer.batches import BatchSource
from leveret.trainer.config import TrainingConfig


def keys_of(source, steps):
    return [key for step in steps for batch in source.step(step) for key in batch.keys]


def make_source(order, **changes):
    config = TrainingConfig(**{"rows_per_step": 6, "micro_batch_rows": 4, "num_epochs": 1, **changes})
    return BatchSource(order, config, rows_in_one_epoch=len(order.rows))


def test_an_epoch_gives_every_row_once_and_ends_with_a_partial_window(new_order):
    source = make_source(new_order(num_rows=40))
    assert source.total_steps == 7
    assert sorted(keys_of(source, range(7))) == sorted(f"toy:{i}" for i in range(40))
    assert [[len(batch.keys) for batch in source.step(step)] for step in (0, 6)] == [[4, 2], [4]]


def test_a_step_does_not_depend_on_the_steps_before_it(new_order):
    source, other = make_source(new_order()), make_source(new_order())
    keys_of(source, range(6))
    assert keys_of(source, [3]) == keys_of(other, [3])


def test_epochs_follow_each_other_without_a_gap(new_order):
    source = make_source(new_order(num_rows=10), num_epochs=2)
    assert keys_of(source, range(source.total_steps)) == [f"toy:{i % 10}" for i in range(20)]
