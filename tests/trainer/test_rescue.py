"""Going back and skipping: the run is the one that never made the skipped updates, however it was killed on the way."""

import itertools
import json
import math

import pytest
import torch

from leveret.console import Console
from leveret.errors import NonFiniteLoss, TrainingError
from leveret.trainer.batches import BatchSource
from leveret.trainer.config import TrainingConfig
from leveret.trainer.journal import Decision, Journal
from leveret.trainer.loop import Run, checkpoints_of, train
from leveret.trainer.metrics import read_metrics
from leveret.trainer.objective import CausalLoss

BASE = {
    "max_steps": 16, "rows_per_step": 4, "micro_batch_rows": 2, "learning_rate": 1e-2, "checkpoint_every_steps": 3,
    "log_every_steps": 1, "precision": "fp32", "sequence_length": 24, "spike_window": 6, "schedule": "linear",
}  # fmt: skip


class Died(BaseException):
    """Stands for kill -9."""


class Odd(CausalLoss):
    """Rows whose key is in `odd` have a loss many times too high (or NaN), as if their text were garbage."""

    odd: frozenset = frozenset()
    factor = 30.0

    def __call__(self, batch):
        loss = super().__call__(batch) * (1 + 0.05 * torch.rand(()))  # random, as with dropout
        return loss * self.factor if self.odd.intersection(batch.keys) else loss


@pytest.fixture
def start(tmp_path, new_model, new_order):
    def run(folder="run", *, odd=(), factor=30.0, die=None, validate=None, identity=None, **changes):
        config = TrainingConfig(**{**BASE, **changes})
        model = new_model()
        objective = Odd(model)
        objective.odd, objective.factor = frozenset(f"toy:{row}" for row in odd), factor
        order = new_order(num_rows=64)
        order.row = dying(order.row, die) if die is not None else order.row
        record = Run(
            config=config,
            source=BatchSource(order, config, rows_in_one_epoch=64),
            objective=objective,
            folder=tmp_path / folder,
            identity=identity or {"config": config.identity()},
            seed=0,
            title="test",
            validate=None if validate is None else (lambda: validate(model)),
        )
        summary = train(model, record, Console(quiet=True, log=tmp_path / "log"))
        return summary, model

    run.folder = tmp_path
    return run


def dying(row, at_call):
    calls = itertools.count(1)

    def read(place):
        if next(calls) == at_call:
            raise Died
        return row(place)

    return read


def weights(model):
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def skipping(start, steps, **settings):
    """The weights of a run that is told beforehand which steps (from 0) to skip."""
    config = TrainingConfig(**{**BASE, **settings})
    identity = {"config": config.identity()}
    folder = checkpoints_of(start.folder / "told", identity, config, Console(quiet=True)).folder
    for step in steps:
        Journal(folder, identity).add(Decision(step=step, first_skipped=step, reason="told", facts={}))
    return weights(start("told", identity=identity, **settings)[1])


ODD_IN_STEP_10 = (41,)
ROLLBACK = {"on_spike": "rollback"}


def test_a_spike_is_reported_with_its_rows_and_the_run_goes_on(start):
    summary, _ = start(odd=ODD_IN_STEP_10)
    assert summary.as_dict()["spikes"] == 1
    report = json.loads((start.folder / "run/forensics/step-11.json").read_text())
    assert report["rows"][0]["key"] == "toy:41"
    assert report["facts"]["loss"] > report["facts"]["limit"] > report["facts"]["typical"]
    (line,) = [line for line in read_metrics(start.folder / "run/metrics.jsonl") if "spike" in line]
    assert line["step"] == 11 and line["loss"] == report["facts"]["loss"]
    assert "step 11: spike: loss" in (start.folder / "log").read_text()


IN_BACKWARD = {"optimizer_in_backward": True, "max_grad_norm": None, "micro_batch_rows": 4}


@pytest.mark.parametrize(
    ("settings", "told"), [({}, "before the update"), (IN_BACKWARD, "on the weights as the step left them")]
)
def test_a_report_says_which_weights_its_losses_are_measured_on(start, settings, told):
    start(odd=ODD_IN_STEP_10, **settings)
    report = json.loads((start.folder / "run/forensics/step-11.json").read_text())
    assert report["measured"] == told
    assert f"Measured one by one {told}, without dropout" in (start.folder / "run/forensics/step-11.html").read_text()


def test_looking_into_a_step_changes_nothing_that_is_learnt(start):
    (_, looked), (_, ignored) = (start(how, odd=ODD_IN_STEP_10, on_spike=how) for how in ("report", "ignore"))
    assert torch.equal(weights(looked), weights(ignored))
    assert not (start.folder / "ignore/forensics").exists()


@pytest.mark.parametrize("every", [1, 3, 5, None])
@pytest.mark.parametrize("skip", [1, 2, 4])
def test_rolled_back_is_the_run_that_never_made_those_steps(start, skip, every):
    summary, rolled = start(odd=ODD_IN_STEP_10, spike_skip_steps=skip, checkpoint_every_steps=every, **ROLLBACK)
    assert summary.as_dict()["skipped_steps"] == skip
    assert torch.equal(weights(rolled), skipping(start, range(11 - skip, 11)))
    lines = read_metrics(start.folder / "run/metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert [line["step"] for line in lines if line.get("skipped") == "spike"] == list(range(12 - skip, 12))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("deaths", [[9 * 4 + 1], [10 * 4 + 3], [48], [30, 20, 14]])
def test_killed_around_a_roll_back_ends_in_the_same_weights(start, deaths, asynchronous):
    settings = {**ROLLBACK, "odd": ODD_IN_STEP_10, "async_checkpoints": asynchronous}
    _, whole = start("whole", **settings)
    for death in deaths:
        with pytest.raises(Died):
            start("killed", die=death, **settings)
    _, killed = start("killed", **settings)
    assert torch.equal(weights(whole), weights(killed))
    files = [start.folder / name / "checkpoints/journal.jsonl" for name in ("whole", "killed")]
    assert files[0].read_text() == files[1].read_text()
    lines = [read_metrics(start.folder / name / "metrics.jsonl") for name in ("whole", "killed")]
    assert [{**line, "tokens_per_second": 0} for line in lines[0]] == [
        {**line, "tokens_per_second": 0} for line in lines[1]
    ]


@pytest.mark.parametrize("moment", ["after the decision", "before the decision"])
def test_killed_in_the_middle_of_a_roll_back_ends_in_the_same_weights(start, monkeypatch, moment):
    _, whole = start("whole", odd=ODD_IN_STEP_10, checkpoint_every_steps=2, **ROLLBACK)
    add = Journal.add

    def die(self, decision):
        if moment == "after the decision":
            add(self, decision)
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", die)
        with pytest.raises(Died):
            start("killed", odd=ODD_IN_STEP_10, checkpoint_every_steps=2, **ROLLBACK)
    assert len(list((start.folder / "killed/checkpoints").glob("step-*"))) >= 2  # the newest made a skipped step
    _, killed = start("killed", odd=ODD_IN_STEP_10, checkpoint_every_steps=2, **ROLLBACK)
    assert torch.equal(weights(whole), weights(killed))


def test_two_spikes_are_two_decisions(start):
    summary, rolled = start(odd=(33, 50), spike_skip_steps=1, **ROLLBACK)
    assert summary.skipped_steps == 2
    assert torch.equal(weights(rolled), skipping(start, [8, 12]))


@pytest.mark.parametrize("first", [0, 1, 10])
def test_a_loss_that_is_not_a_number_is_skipped_when_asked(start, first):
    settings = {"spike_skip_steps": 1, "on_non_finite": "rollback"}
    summary, rolled = start(odd=(first * 4,), factor=math.nan, **settings)
    assert summary.skipped_steps == 1
    assert torch.equal(weights(rolled), skipping(start, [first], **settings))


def test_without_being_asked_a_loss_that_is_not_a_number_ends_the_run_and_names_the_row(start):
    with pytest.raises(NonFiniteLoss, match=r"step 11: .*toy:40, toy:41"):
        start(odd=ODD_IN_STEP_10, factor=math.nan)
    report = json.loads((start.folder / "run/forensics/step-11.json").read_text())
    assert report["rows"][0] == {**report["rows"][0], "key": "toy:41", "loss": None}
    assert all(row["loss"] is not None for row in report["rows"][1:])
    assert not (start.folder / "run/checkpoints/journal.jsonl").exists()


def test_a_run_that_ended_at_a_nan_goes_on_when_told_to_roll_back(start):
    for _ in range(2):
        with pytest.raises(NonFiniteLoss):
            start(odd=ODD_IN_STEP_10, factor=math.nan)
    _, rescued = start(odd=ODD_IN_STEP_10, factor=math.nan, on_non_finite="rollback", spike_skip_steps=1)
    assert torch.equal(weights(rescued), skipping(start, [10]))


def test_spikes_without_end_end_the_run(start):
    with pytest.raises(TrainingError, match=r"spike again after 2 roll-backs.*\n.*learning_rate"):
        start(odd=range(28, 64), max_rollbacks=2, **ROLLBACK)


def test_the_checkpoint_from_before_the_skipped_steps_is_kept_beyond_the_number_of_checkpoints(start):
    settings = {"odd": (61,), "checkpoint_every_steps": 1, "keep_checkpoints": 1, "spike_skip_steps": 5}
    summary, rolled = start(**settings, **ROLLBACK)
    assert summary.skipped_steps == 5
    assert torch.equal(weights(rolled), skipping(start, range(11, 16)))


def test_a_full_disk_costs_the_report_and_not_the_run(start, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leveret.trainer.forensics.atomic_write", full)
    summary, _ = start(odd=ODD_IN_STEP_10)
    assert summary.spikes == 1
    assert "no report on step 11 could be written" in (start.folder / "log").read_text()


@pytest.mark.parametrize("every", [3, 4])
def test_the_best_checkpoint_of_a_branch_that_was_given_up_is_not_published(start, every):
    """The loss falls up to step 10, which is then skipped together with step 11; nothing after it is as good."""
    losses = {}

    def validate(model):
        state = weights(model).numpy().tobytes()
        return {"validation_loss": losses.setdefault(state, 10.0 - len(losses) if len(losses) < 10 else 20.0)}

    settings = {"publish": "best", "evaluate_every_steps": 1, "odd": ODD_IN_STEP_10, "checkpoint_every_steps": every}
    summary, published = start(validate=validate, **settings, **ROLLBACK)
    assert summary.best_step == 9
    assert losses[weights(published).numpy().tobytes()] == 2.0 == summary.validation["validation_loss"]
