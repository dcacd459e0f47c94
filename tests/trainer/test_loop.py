"""The loop: resumed equals uninterrupted, every knob does something, and a stop or a fault loses nothing."""

import itertools
import os
import signal
import time

import pytest
import torch

from leveret.console import Console
from leveret.errors import CheckpointError, NonFiniteLoss, Stopped
from leveret.model.config import MoeConfig
from leveret.trainer.batches import BatchSource
from leveret.trainer.config import TrainingConfig
from leveret.trainer.loop import Run, train
from leveret.trainer.metrics import read_metrics
from leveret.trainer.objective import CausalLoss
from leveret.trainer.stopping import listen_for_stop

BASE = {
    "max_steps": 8, "rows_per_step": 4, "micro_batch_rows": 4, "learning_rate": 1e-2, "checkpoint_every_steps": 3,
    "log_every_steps": 1, "precision": "fp32", "sequence_length": 24, "warmup_steps": 1,
}  # fmt: skip


MIXTURE = {"family": "mixtral", "moe": MoeConfig(num_experts=4, experts_per_token=2)}


class Died(BaseException):
    """Stands for kill -9: nothing in the loop may catch it."""


class Spy:
    """Wraps an order, notes which rows were asked for, and dies when a row of step `die_at` is."""

    def __init__(self, order, die_at=None, rows_per_step=4):
        self.order, self.die_at, self.rows_per_step, self.seen = order, die_at, rows_per_step, []

    def row(self, place):
        if self.die_at is not None and place // self.rows_per_step == self.die_at:
            raise Died
        self.seen.append(place)
        return self.order.row(place)

    def key(self, place):
        return self.order.key(place)


class Noisy(CausalLoss):
    """Draws random numbers in each step, as dropout would."""

    def __call__(self, batch):
        return super().__call__(batch) * (1 + 0.5 * torch.rand(()))


@pytest.fixture
def start(tmp_path, new_model, new_order):
    def run(
        folder="run", *, die_at=None, objective=CausalLoss, validate=None, seed=0, poison=None, mixture=False, **changes
    ):
        settings = {**BASE, **changes}
        config = TrainingConfig(**{key: value for key, value in settings.items() if value != "leave out"})
        model = new_model(**MIXTURE if mixture else {})
        order = Spy(new_order(), die_at, config.rows_per_step)
        target = objective(model, config) if poison is None else poison(objective(model, config))
        record = Run(
            config=config,
            source=BatchSource(order, config, rows_in_one_epoch=40),
            objective=target,
            folder=tmp_path / folder,
            identity={"config": config.identity(), "seed": seed},
            seed=seed,
            title="test",
            validate=(lambda: validate(model)) if validate else None,
        )
        console = Console(quiet=True, log=tmp_path / "log")
        return train(model, record, console), model, order

    run.folder = tmp_path
    return run


def weights(model):
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


LEAN = {
    "8bit": {"optimizer": "adamw_8bit"},
    "bf16": {"optimizer": "adamw_bf16", "stochastic_rounding": True, "precision": "bf16"},
    "backward": {
        "optimizer": "adamw_8bit", "stochastic_rounding": True, "precision": "bf16", "optimizer_in_backward": True,
        "max_grad_norm": None, "recompute": "layers",
    },
    "backward with all averages": {"optimizer_in_backward": True, "max_grad_norm": None},
    "fp8": {"precision": "bf16", "fp8": {"history_steps": 3}, "micro_batch_rows": 2},
    "fp8 by the tensors themselves": {"precision": "bf16", "fp8": {"recipe": "current"}, "recompute": "layers"},
}  # fmt: skip


@pytest.mark.parametrize("kind", LEAN)
def test_a_lean_run_that_died_gives_the_weights_of_one_that_did_not(start, kind, monkeypatch):
    monkeypatch.setattr("leveret.trainer.lean_adamw.SMALLEST_COMPRESSED", 64)  # so that a toy is compressed
    _, whole, _ = start("whole", objective=Noisy, **LEAN[kind])
    for death in (4, 7):
        with pytest.raises(Died):
            start("killed", objective=Noisy, die_at=death, **LEAN[kind])
    _, resumed, _ = start("killed", objective=Noisy, **LEAN[kind])
    assert torch.equal(weights(whole), weights(resumed))
    _, other, _ = start("other seed", objective=Noisy, seed=1, **LEAN[kind])
    assert not torch.equal(weights(whole), weights(other))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("deaths", [[5], [2], [4, 7], [7, 7]])
def test_a_run_that_died_gives_the_weights_of_one_that_did_not(start, deaths, precision):
    _, whole, _ = start("whole", objective=Noisy, precision=precision)
    for death in deaths:
        with pytest.raises(Died):
            start("killed", objective=Noisy, precision=precision, die_at=death)
    summary, resumed, _ = start("killed", objective=Noisy, precision=precision)
    assert summary.resumed_from_step == deaths[-1] // 3 * 3
    assert torch.equal(weights(whole), weights(resumed))


def test_rows_are_neither_replayed_nor_skipped_over_two_resumes(start):
    _, _, whole = start("whole")
    for death in (4, 7):
        with pytest.raises(Died):
            start("killed", die_at=death)
    _, _, last = start("killed")
    assert last.seen == whole.seen[6 * 4 :]  # after the checkpoint of step 6
    steps = [line["step"] for line in read_metrics(start.folder / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 9))


def test_metrics_of_a_resumed_run_are_those_of_the_uninterrupted_one(start):
    start("whole")
    with pytest.raises(Died):
        start("killed", die_at=5)
    start("killed")
    for whole, killed in zip(
        *(read_metrics(start.folder / name / "metrics.jsonl") for name in ("whole", "killed")), strict=True
    ):
        assert {**whole, "tokens_per_second": 0} == {**killed, "tokens_per_second": 0}


def test_a_damaged_newest_checkpoint_still_ends_in_the_same_weights(start):
    _, whole, _ = start("whole")
    with pytest.raises(Died):
        start("killed", die_at=7)
    newest = max((start.folder / "killed" / "checkpoints").iterdir())
    (newest / "state.safetensors").write_bytes(b"\0" * 100)
    summary, resumed, _ = start("killed")
    assert summary.resumed_from_step == 3
    assert torch.equal(weights(whole), weights(resumed))
    assert "damaged" in (start.folder / "log").read_text()


def test_a_changed_setting_is_refused_on_resume_but_a_free_one_is_not(start):
    with pytest.raises(Died):
        start(die_at=5)
    with pytest.raises(CheckpointError, match=r"config.learning_rate: 0.01 -> 0.02"):
        start(learning_rate=2e-2)
    summary, _, _ = start(log_every_steps=4, keep_checkpoints=1, checkpoint_every_steps=5)
    assert summary.resumed_from_step == 3


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_finishes_the_step_saves_and_leaves(start, number, error):
    _, whole, _ = start("whole")
    calls = itertools.count(1)

    def send_in_step_five(objective):
        def call(batch):
            if next(calls) == 5:
                os.kill(os.getpid(), number)
            return objective(batch)

        return call

    with pytest.raises(error) as caught:
        start("stopped", poison=send_in_step_five)
    assert number != signal.SIGTERM or caught.value.exit_code == 143
    assert "stopped: step 5 of 8" in (start.folder / "stopped" / "metrics.html").read_text()
    summary, resumed, _ = start("stopped")
    assert summary.resumed_from_step == 5
    assert torch.equal(weights(whole), weights(resumed))


def test_a_signal_that_comes_again_at_once_is_the_same_request_and_later_it_ends_at_once():
    ended = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append("at once"))
    try:
        with listen_for_stop() as stop:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal == signal.SIGTERM and not ended
            time.sleep(1.1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == ["at once"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signal_handlers_are_put_back(start):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    start(max_steps=2)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_non_finite_loss_ends_the_run_with_the_step_and_the_page_says_so(start):
    calls = itertools.count()

    def nan_in_step_four(objective):
        return lambda batch: objective(batch) * (float("nan") if next(calls) == 4 else 1.0)

    with pytest.raises(NonFiniteLoss, match=r"step 5: .*toy:16, toy:17, toy:18, toy:19"):
        start(poison=nan_in_step_four)
    assert "failed: step 4 of 8" in (start.folder / "run" / "metrics.html").read_text()


def test_validation_runs_when_due_and_at_the_end_and_does_not_change_what_is_learnt(start):
    _, plain, _ = start("plain")
    losses = []

    def validate(model):
        torch.rand(3)
        losses.append(1.0)
        return {"validation_loss": 1.0}

    summary, checked, _ = start("checked", validate=validate, evaluate_every_steps=3)
    lines = read_metrics(start.folder / "checked" / "metrics.jsonl")
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6, 8]
    assert summary.validation == {"validation_loss": 1.0}
    assert torch.equal(weights(plain), weights(checked))


@pytest.mark.parametrize("micro_batch_rows", [1, 2, 4])
@pytest.mark.parametrize(
    "warmup", [{"warmup_steps": 0}, {"warmup_steps": 3}, {"warmup_steps": 0, "warmup_fraction": 0.25}]
)
def test_the_learning_rates_of_a_run_are_those_of_its_steps_whatever_a_step_is_cut_into(
    start, micro_batch_rows, warmup
):
    start("run", schedule="linear", min_learning_rate_ratio=0.0, micro_batch_rows=micro_batch_rows, **warmup)
    rates = [line["learning_rate"] / BASE["learning_rate"] for line in read_metrics(start.folder / "run/metrics.jsonl")]
    expected = {
        (0, 0): [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8],
        (3, 0): [1 / 3, 2 / 3, 1, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5],
        (0, 0.25): [1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6],
    }[warmup["warmup_steps"], warmup.get("warmup_fraction", 0)]
    assert rates == pytest.approx(expected)


KNOBS = {  # knob -> a value; where it shows
    "num_epochs": (0.5, "weights"),
    "max_steps": (5, "weights"),
    "rows_per_step": (5, "weights"),
    "learning_rate": (3e-3, "weights"),
    "optimizer": ("muon", "weights"),
    "min_learning_rate_ratio": (0.9, "weights"),
    "schedule": ("linear", "weights"),
    "warmup_steps": (3, "weights"),
    "weight_decay": (0.9, "weights"),
    "betas": ((0.8, 0.99), "weights"),
    "eps": (1e-2, "weights"),
    "max_grad_norm": (0.01, "weights"),
    "precision": ("bf16", "weights"),
    "router_aux_loss_coef": (0.5, "weights"),
    "router_z_loss_coef": (0.5, "weights"),
    "freeze_router": (True, "weights"),
    "keep_checkpoints": (1, "checkpoints"),
    "keep_final_checkpoint": (True, "checkpoints"),
    "checkpoint_every_steps": (2, "checkpoints"),
    "log_every_steps": (4, "lines"),
    "evaluate_every_steps": (2, "validations"),
    "micro_batch_rows": (2, "forwards"),
}
OF_MIXTURES = {"router_aux_loss_coef", "router_z_loss_coef", "freeze_router"}
ELSEWHERE = {
    "router_balance": "test_routing.py",
    "matrix_learning_rate_ratio": "test_muon.py",
    "decay_embeddings": "test_adamw.py",
    "stochastic_rounding": "test_lean_adamw.py",
    "optimizer_in_backward": "test_lean_adamw.py",
    "max_parameter_grad_norm": "test_lean_adamw.py",
    "recompute": "test_recompute.py",
    "decay_fraction": "test_schedule.py",
    "decay_shape": "test_schedule.py",
    "num_cycles": "test_schedule.py",
    "power": "test_schedule.py",
    "milestones": "test_schedule.py",
    "milestone_ratio": "test_schedule.py",
    "warmup_fraction": "test_schedule.py",
    "fp8": "test_fp8.py",
    "sequence_length": "tests/pretrain",
    "device": "test_world.py",
    "parallel": "test_parallel.py",
    "deepspeed": "test_deepspeed.py",
    "evaluate_rows": "test_validation.py",
    "async_checkpoints": "test_background.py",
    "keep_best": "test_best.py",
    "publish": "test_best.py",
    "early_stop_patience": "test_best.py",
    "early_stop_min_delta": "test_best.py",
    "on_spike": "test_rescue.py",
    "spike_window": "test_spikes.py",
    "spike_threshold": "test_spikes.py",
    "spike_skip_steps": "test_rescue.py",
    "on_non_finite": "test_rescue.py",
    "max_rollbacks": "test_rescue.py",
    "report_to": "test_reporters.py",
}


def test_the_table_of_knobs_is_complete():
    assert {*KNOBS} | {*ELSEWHERE} == {*TrainingConfig.model_fields}


@pytest.mark.parametrize("knob", KNOBS)
def test_each_knob_has_an_observable_effect(start, knob):
    value, where = KNOBS[knob]
    seen = []
    for folder, changes in (("before", {}), ("after", {knob: value})):
        counts = {"forwards": 0, "validations": 0}

        def counting(objective, counts=counts):
            def call(batch):
                counts["forwards"] += 1
                return objective(batch)

            return call

        def validate(model, counts=counts):
            counts["validations"] += 1
            return {}

        _, model, _ = start(folder, poison=counting, validate=validate, mixture=knob in OF_MIXTURES, **changes)
        path = start.folder / folder
        seen.append(
            {
                "weights": weights(model).tolist(),
                "checkpoints": sorted(entry.name for entry in (path / "checkpoints").iterdir()),
                "lines": len(read_metrics(path / "metrics.jsonl")),
                **counts,
            }[where]
        )
    assert seen[0] != seen[1]
