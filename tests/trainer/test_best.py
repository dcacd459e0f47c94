"""The best checkpoint and the early stop: what is published, when a run gives up, and the same after a kill."""

import pytest
import torch

from leveret.console import Console
from leveret.errors import CheckpointError, ConfigError
from leveret.trainer.batches import BatchSource
from leveret.trainer.config import TrainingConfig
from leveret.trainer.loop import Run, train
from leveret.trainer.metrics import read_metrics
from leveret.trainer.objective import CausalLoss

BASE = {
    "max_steps": 12, "rows_per_step": 4, "micro_batch_rows": 4, "learning_rate": 1e-2, "checkpoint_every_steps": 3,
    "log_every_steps": 100, "evaluate_every_steps": 1, "precision": "fp32", "sequence_length": 24,
}  # fmt: skip
LOSSES = [5.0, 4.0, 3.0, 2.0, 2.5, 1.9, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6]
BEST = 6


class Died(BaseException):
    """Stands for kill -9."""


@pytest.fixture
def start(tmp_path, new_model, new_order):
    """Trains with validation losses that depend on the step alone: `losses[i]` after step i + 1."""

    def run(folder="run", *, losses=LOSSES, die_after=None, validates=True, **changes):
        config = TrainingConfig(**{**BASE, **changes})
        model, source = new_model(), None
        states = {}

        def validate():
            step = len(read_metrics(tmp_path / folder / "metrics.jsonl"))
            if step == die_after:
                raise Died
            states[step + 1] = weights(model)
            return {"validation_loss": losses[step], "bits_per_byte": losses[step] / 4}

        source = BatchSource(new_order(), config, rows_in_one_epoch=40)
        record = Run(
            config=config, source=source, objective=CausalLoss(model), folder=tmp_path / folder,
            identity={"config": config.identity()}, seed=0, title="test", validate=validate if validates else None,
        )  # fmt: skip
        return train(model, record, Console(quiet=True, log=tmp_path / "log")), model, states

    run.folder = tmp_path
    return run


def weights(model):
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def test_the_last_weights_are_published_unless_the_best_are_asked_for(start):
    _, last, states = start("last")
    assert torch.equal(weights(last), states[12])
    summary, best, states = start("best", publish="best")
    assert torch.equal(weights(best), states[BEST])
    figures = summary.as_dict()
    assert figures["best_step"] == BEST and figures["validation_loss"] == 1.9 and figures["bits_per_byte"] == 0.475
    assert "publishing the weights after step 6" in (start.folder / "log").read_text()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_best_state_is_kept_and_only_that(start, asynchronous):
    start(keep_best=True, async_checkpoints=asynchronous)
    (kept,) = (start.folder / "run/checkpoints/best").iterdir()
    assert kept.name == f"step-{BEST:08d}"


@pytest.mark.parametrize(("settings", "stops_after"), [
    ({"early_stop_patience": 1}, 5),
    ({"early_stop_patience": 3}, 9),
    ({"early_stop_patience": 7}, None),
    ({"early_stop_patience": 3, "early_stop_min_delta": 0.5}, 7),  # 1.9 is not half a nat below 2.0
    ({"early_stop_patience": 2, "evaluate_every_steps": 2}, None),
])  # fmt: skip
def test_a_run_ends_when_validation_no_longer_improves(start, settings, stops_after):
    summary, model, states = start(**settings)
    assert summary.stopped_early_after_step == stops_after
    assert torch.equal(weights(model), states[max(states)])
    page = (start.folder / "run/metrics.html").read_text()
    assert (f"stopped early: step {stops_after} of 12" in page) == (stops_after is not None)


@pytest.mark.parametrize("die_after", [4, 6, 8])
def test_killed_and_resumed_it_stops_at_the_same_step_with_the_same_weights(start, die_after):
    settings = {"early_stop_patience": 3, "publish": "best"}
    whole, published, _ = start("whole", **settings)
    with pytest.raises(Died):
        start("killed", die_after=die_after, **settings)
    resumed, again, _ = start("killed", **settings)
    assert resumed.resumed_from_step == die_after // 3 * 3
    assert whole.stopped_early_after_step == resumed.stopped_early_after_step == 9
    assert torch.equal(weights(published), weights(again))


def test_a_best_state_from_after_the_resumed_step_does_not_outlive_a_new_one(start):
    """The newest checkpoint is damaged, and from the one before it (on another machine) the run goes another way."""
    before = [5.0, 4.0, 4.5, 4.5, 4.5, 4.5, 4.5, 4.5, 4.5, 1.0, 4.5, 4.5]
    with pytest.raises(Died):
        start(losses=before, die_after=10, publish="best", keep_best=True)
    checkpoints = start.folder / "run/checkpoints"
    assert [folder.name for folder in (checkpoints / "best").iterdir()] == ["step-00000010"]
    (checkpoints / "step-00000009/manifest.json").unlink()
    again = [5.0, 4.0, 4.5, 4.5, 4.5, 4.5, 4.5, 2.0, 4.5, 4.5, 4.5, 4.5]
    summary, published, states = start(losses=again, publish="best", keep_best=True)
    assert (summary.resumed_from_step, summary.best_step) == (6, 8)
    assert torch.equal(weights(published), states[8])
    assert [folder.name for folder in (checkpoints / "best").iterdir()] == ["step-00000008"]


@pytest.mark.parametrize("die_after", [7, 11])
def test_a_damaged_best_state_is_made_again_from_a_checkpoint_before_it(start, die_after):
    _, published, _ = start("whole", publish="best")
    with pytest.raises(Died):
        start("killed", die_after=die_after, publish="best", keep_checkpoints=3)
    (kept,) = (start.folder / "killed/checkpoints/best").iterdir()
    (kept / "state.safetensors").write_bytes(b"")
    summary, again, _ = start("killed", publish="best", keep_checkpoints=3)
    assert (summary.resumed_from_step, summary.best_step) == (3, BEST)
    assert torch.equal(weights(published), weights(again))
    assert "going on from before it, to make it again" in " ".join((start.folder / "log").read_text().split())


def test_with_no_checkpoint_before_a_damaged_best_state_a_better_one_is_hoped_for(start):
    settings = {"publish": "best", "keep_checkpoints": 1}
    with pytest.raises(Died):
        start(die_after=7, **settings)
    best = start.folder / "run/checkpoints/best"
    (best / f"step-{BEST:08d}/state.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"state.safetensors is missing, and.*\n.*rm -r .*run/checkpoints$"):
        start(**settings)
    summary, published, states = start(losses=[*LOSSES[:-1], 1.0], **settings)
    assert summary.best_step == 12 and torch.equal(weights(published), states[12])


@pytest.mark.parametrize("losses", [LOSSES, [1.0, *LOSSES[1:]]])
def test_asked_for_on_the_way_the_best_state_from_there_on_is_kept(start, losses):
    with pytest.raises(Died):
        start(die_after=8, losses=losses)
    summary, *_ = start(keep_best=True, losses=losses)
    from_there_on = min(range(7, 13), key=lambda step: losses[step - 1])
    (kept,) = (start.folder / "run/checkpoints/best").iterdir()
    assert kept.name == f"step-{from_there_on:08d}" and summary.best_step == from_there_on
    assert (
        f"{min(losses[:6]):.4g} after step {losses.index(min(losses)) + 1}) was not kept"
        in (start.folder / "log").read_text()
    )


def test_what_validation_decides_may_not_change_on_the_way(start):
    with pytest.raises(Died):
        start(die_after=4, publish="best")
    with pytest.raises(CheckpointError, match=r"evaluate_every_steps: 1 -> 2"):
        start(publish="best", evaluate_every_steps=2)


def test_a_validation_that_is_never_a_number_publishes_the_last_weights(start):
    summary, model, states = start(publish="best", losses=[float("nan")] * 12)
    assert summary.best_step is None
    assert torch.equal(weights(model), states[12])


def test_without_validation_data_it_says_what_is_missing(start):
    with pytest.raises(ConfigError, match=r"there is no `validation`"):
        start(validates=False, publish="best")


def test_an_interval_without_validation_data_does_nothing_and_says_so(start):
    start(validates=False)
    log = " ".join((start.folder / "log").read_text().split())
    assert "evaluate_every_steps is 1, but there is no `validation`" in log
    start("other", validates=False, evaluate_every_steps=None)
    assert "validation" not in (start.folder / "log").read_text()[len(log) :]


@pytest.mark.parametrize("settings", [
    {"early_stop_patience": 2, "evaluate_every_steps": None},
    {"publish": "best", "evaluate_every_steps": None},
    {"early_stop_min_delta": 0.1},
    {"publish": "best", "keep_final_checkpoint": True},
])  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(settings):
    with pytest.raises(ValueError, match=r"early_stop|evaluate_every_steps|keep_best"):
        TrainingConfig(**{**BASE, **settings})
