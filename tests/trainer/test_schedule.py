"""The learning rate: golden curves, and no dependence on anything but the step."""

import math

import pytest

from leveret.errors import ConfigError
from leveret.trainer.config import TrainingConfig
from leveret.trainer.schedule import Schedule

BASE = {"learning_rate": 1.0, "min_learning_rate_ratio": 0.1, "warmup_steps": 2}


def curve(total=8, **changes):
    config = TrainingConfig(**{**BASE, "max_steps": total, **changes})
    schedule = Schedule(config=config, total_steps=total)
    return [schedule.at(step) for step in range(total)]


GOLDEN = {
    "constant": [0.5, 1, 1, 1, 1, 1, 1, 1],
    "linear": [0.5, 1, 1, 0.85, 0.7, 0.55, 0.4, 0.25],
    "cosine": [0.5, 1, 1, 0.9397114317, 0.775, 0.55, 0.325, 0.1602885683],
    "wsd": [0.5, 1, 1, 1, 1, 1, 1, 0.55],
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_each_schedule_follows_its_golden_curve(kind):
    assert curve(schedule=kind) == pytest.approx(GOLDEN[kind])


def test_wsd_falls_over_the_asked_share_of_all_steps():
    rates = curve(total=100, schedule="wsd", decay_fraction=0.5)
    assert rates[50] == 1.0 and rates[51] < 1.0
    assert rates[-1] == pytest.approx(0.1 + 0.9 / 50)


@pytest.mark.parametrize("kind", GOLDEN)
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_no_step_is_at_zero_and_the_peak_is_reached(kind, warmup):
    rates = curve(total=40, schedule=kind, warmup_steps=warmup, min_learning_rate_ratio=0.0)
    assert min(rates) > 0
    assert max(rates) == 1.0 == rates[warmup]


@pytest.mark.parametrize("micro_batch_rows", [1, 2, 8])
@pytest.mark.parametrize("rows_per_step", [8, 16])
@pytest.mark.parametrize("epochs", [1, 2.5])
def test_the_schedule_counts_optimizer_steps_not_micro_batches(micro_batch_rows, rows_per_step, epochs):
    config = TrainingConfig(num_epochs=epochs, rows_per_step=rows_per_step, micro_batch_rows=micro_batch_rows)
    rows = 100
    total = config.total_steps(rows)
    assert total == math.ceil(epochs * rows / rows_per_step)
    middle = Schedule(config=config, total_steps=total).at(total // 2) / config.learning_rate
    progress = (total // 2) / total
    assert middle == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


def test_a_warm_up_longer_than_the_data_allows_is_refused_with_the_numbers():
    config = TrainingConfig(num_epochs=1, warmup_steps=50)
    with pytest.raises(ConfigError, match=r"warmup_steps is 50.*only 10 optimizer steps"):
        Schedule(config=config, total_steps=10)
