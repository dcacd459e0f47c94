"""The learning rate: golden curves, and no dependence on anything but the step."""

import math

import pytest
import torch

from leveret.config import parse_config
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
    "polynomial": [0.5, 1, 1, 0.85, 0.7, 0.55, 0.4, 0.25],
    "cosine_restarts": [0.5, 1, 1, 0.9397114317, 0.775, 0.55, 0.325, 0.1602885683],
    "inverse_sqrt": [0.5, 1, 1, 0.8164965809, 0.7071067812, 0.6324555320, 0.5773502692, 0.5345224838],
    "steps": [0.5, 1, 1, 1, 1, 1, 1, 0.316],
}
SHAPED = [
    ({"schedule": "polynomial", "power": 2.0}, [0.5, 1, 1, 0.725, 0.5, 0.325, 0.2, 0.125]),
    ({"schedule": "cosine_restarts", "num_cycles": 2}, [0.5, 1, 1, 0.775, 0.325, 1, 0.775, 0.325]),
    ({"schedule": "wsd", "decay_fraction": 0.5}, [0.5, 1, 1, 1, 1, 0.775, 0.55, 0.325]),
    (
        {"schedule": "wsd", "decay_fraction": 0.5, "decay_shape": "sqrt"},
        [0.5, 1, 1, 1, 1, 0.55, 0.3636038969, 0.2205771366],
    ),
    (
        {"schedule": "wsd", "decay_fraction": 0.5, "decay_shape": "cosine"},
        [0.5, 1, 1, 1, 1, 0.8681980515, 0.55, 0.2318019485],
    ),
    ({"schedule": "steps", "milestones": [0.5, 0.75]}, [0.5, 1, 1, 1, 0.316, 0.316, 0.1, 0.1]),
    (
        {"schedule": "steps", "milestones": [0.5], "milestone_ratio": 0.2, "warmup_steps": 0},
        [1, 1, 1, 1, 0.2, 0.2, 0.2, 0.2],
    ),
    (
        {"schedule": "linear", "warmup_steps": 0, "warmup_fraction": 0.2, "min_learning_rate_ratio": 0.0},
        [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), SHAPED)
def test_the_keys_of_a_schedule_bend_its_curve_as_written(changes, expected):
    assert curve(**changes) == pytest.approx(expected, rel=1e-9)


def transformers_curve(kind, total, warmup, floor):
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    both = {"num_warmup_steps": warmup, "num_training_steps": total}
    decay = round(0.25 * total)
    wsd = {
        "num_warmup_steps": warmup, "num_decay_steps": decay, "num_stable_steps": total - decay - warmup,
        "min_lr_ratio": floor,
    }  # fmt: skip
    makers = {
        "constant": lambda: transformers.get_constant_schedule_with_warmup(optimizer, num_warmup_steps=warmup),
        "linear": lambda: transformers.get_linear_schedule_with_warmup(optimizer, **both),
        "cosine": lambda: transformers.get_cosine_schedule_with_warmup(optimizer, **both),
        "cosine_restarts": lambda: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(
            optimizer, num_cycles=3, **both
        ),
        "polynomial": lambda: transformers.get_polynomial_decay_schedule_with_warmup(
            optimizer, power=2.5, lr_end=floor, **both
        ),
        "inverse_sqrt": lambda: transformers.get_inverse_sqrt_schedule(optimizer, num_warmup_steps=warmup),
        "wsd": lambda: transformers.get_wsd_schedule(optimizer, decay_type="linear", **wsd),
        "wsd cosine": lambda: transformers.get_wsd_schedule(optimizer, decay_type="cosine", **wsd),
        "wsd sqrt": lambda: transformers.get_wsd_schedule(optimizer, decay_type="1-sqrt", **wsd),
    }
    schedule, rates = makers[kind](), []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("warmup", [3, 10])
@pytest.mark.parametrize(
    ("kind", "floor", "changes"),
    [
        ("constant", 0.0, {}),
        ("linear", 0.0, {}),
        ("cosine", 0.0, {}),
        ("cosine_restarts", 0.0, {"num_cycles": 3}),
        ("polynomial", 0.07, {"power": 2.5}),
        ("inverse_sqrt", 0.0, {}),
        ("wsd", 0.1, {"decay_fraction": 0.25}),
        ("wsd cosine", 0.1, {"decay_fraction": 0.25, "decay_shape": "cosine"}),
        ("wsd sqrt", 0.1, {"decay_fraction": 0.25, "decay_shape": "sqrt"}),
    ],
)
def test_after_the_warm_up_each_curve_is_that_of_transformers(kind, floor, changes, warmup):
    total = 60
    theirs = transformers_curve(kind, total, warmup, floor)
    schedule = kind.partition(" ")[0]
    ours = curve(total, schedule=schedule, warmup_steps=warmup, min_learning_rate_ratio=floor, **changes)
    assert ours[warmup:] == pytest.approx(theirs[warmup:], rel=1e-9, abs=1e-12)
    if schedule != "wsd":  # whose warm-up begins at the floor there
        assert ours[: warmup - 1] == pytest.approx(theirs[1:warmup])  # one step ahead: none is at zero


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"decay_shape": "sqrt"}, "decay_shape .sqrt. is read by schedule: wsd only"),
        ({"decay_fraction": 0.5, "schedule": "linear"}, "decay_fraction"),
        ({"num_cycles": 2}, "cosine_restarts only"),
        ({"power": 2}, "polynomial only"),
        ({"milestone_ratio": 0.5}, "steps only"),
        ({"schedule": "steps", "milestones": [0.9, 0.8]}, "milestones must rise"),
        ({"schedule": "steps", "milestones": [0.5, 1.5]}, "between 0 and 1"),
        ({"schedule": "inverse_sqrt"}, "needs a warm-up"),
        ({"warmup_steps": 3, "warmup_fraction": 0.1}, "not both"),
    ],
)
def test_keys_that_nothing_would_read_are_refused(data, words):
    with pytest.raises(ConfigError, match=words):
        parse_config(TrainingConfig, data, source="test")


def test_a_config_with_every_default_written_out_is_read_again():
    for kind in GOLDEN:
        config = TrainingConfig(schedule=kind, warmup_steps=1)
        assert parse_config(TrainingConfig, config.model_dump(mode="json"), source="test") == config


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
    if kind == "inverse_sqrt" and not warmup:
        pytest.skip("refused: it needs a warm-up")
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


def test_a_warm_up_by_share_is_refused_by_its_own_name():
    with pytest.raises(
        ConfigError, match=r"warmup_fraction is 0.03 \(1 steps\), .* only 1 optimizer steps\n.*lower warmup_fr"
    ):
        Schedule(config=TrainingConfig(max_steps=1, warmup_fraction=0.03), total_steps=1)


@pytest.mark.parametrize("share", [0.07, 0.14, 0.28, 0.29, 0.55, 0.56, 0.57, 0.58])
def test_a_share_that_is_a_whole_number_of_steps_is_that_number(share):
    steps = round(share * 100)
    config = TrainingConfig(max_steps=100, warmup_fraction=share)
    assert Schedule(config=config, total_steps=100).warmup == steps
    rates = curve(100, schedule="steps", milestones=[share], warmup_steps=0)
    assert rates[steps - 1] == 1.0 > rates[steps]


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_a_decay_that_would_begin_in_the_warm_up_begins_after_it(shape):
    both = {"schedule": "wsd", "decay_shape": shape, "warmup_steps": 5}
    rates = curve(10, decay_fraction=1.0, **both)
    assert rates == curve(10, decay_fraction=0.5, **both)
    assert rates[4] == rates[5] == 1.0 and all(rates[i] > rates[i + 1] for i in range(5, 9))
