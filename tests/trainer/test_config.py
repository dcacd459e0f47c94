"""TrainingConfig: ranges, combinations, and how many steps a run has."""

import pytest

from leveret.config import parse_config
from leveret.errors import ConfigError
from leveret.trainer.config import FREE_TO_CHANGE, TrainingConfig


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"micro_batch_rows": 32, "rows_per_step": 16}, "micro_batch_rows"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"warmup_steps": 10, "max_steps": 10}, "warmup_steps"),
        ({"schedule": "cosin"}, "cosine"),
        ({"warm_up_steps": 3}, "warmup_steps"),
    ],
)
def test_wrong_values_are_refused_by_name(data, words):
    with pytest.raises(ConfigError, match=words):
        parse_config(TrainingConfig, data, source="test")


@pytest.mark.parametrize(
    ("changes", "rows", "steps"),
    [
        ({}, 100, 7),  # one epoch, the last step partial
        ({"num_epochs": 2}, 100, 13),  # epochs follow each other without a gap
        ({"num_epochs": 0.5}, 100, 4),
        ({"max_steps": 50}, 100, 50),
        ({"max_steps": 5, "num_epochs": 2}, 100, 5),
        ({"max_steps": 500, "num_epochs": 2}, 100, 13),
    ],
)
def test_steps_follow_from_epochs_and_the_earlier_end_wins(changes, rows, steps):
    assert TrainingConfig(rows_per_step=16, **changes).total_steps(rows) == steps


def test_identity_leaves_out_exactly_what_may_change_between_a_run_and_its_resumption():
    assert {*TrainingConfig.model_fields} - {*TrainingConfig().identity()} == FREE_TO_CHANGE
