"""The loop in several processes: signals, deaths, roll-backs and the best weights are those of one process."""

import hashlib
import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from leveret.console import Console
from leveret.errors import Stopped
from leveret.finetune.neftune import NoisyLoss
from leveret.trainer import lean_adamw
from leveret.trainer.batches import BatchSource
from leveret.trainer.config import TrainingConfig
from leveret.trainer.loop import Run, train
from leveret.trainer.metrics import read_metrics
from leveret.trainer.objective import CausalLoss
from leveret.trainer.validation import Validation
from leveret.trainer.world import joined

LOOP = {
    "max_steps": 6, "rows_per_step": 8, "micro_batch_rows": 4, "learning_rate": 1e-2, "precision": "fp32",
    "sequence_length": 24, "max_grad_norm": None, "device": "cpu", "warmup_steps": 0, "checkpoint_every_steps": 2,
    "log_every_steps": 1, "keep_final_checkpoint": True,
}  # fmt: skip


class HeldOut:
    """A few rows to validate on."""

    def __init__(self, order):
        self.order = order

    def __len__(self):
        return 5

    def row(self, index):
        return self.order.row(index)


def trained(folder, settings, stop_rank=None, dead_rank=None, at_call=3, odd=None, dies_writing=None, noise=None):
    """The loop to its end, or to what happens to one of the processes while it makes a step or writes."""
    from conftest import ToyOrder, make_model  # beside this file, in the process that forks

    lean_adamw.SMALLEST_COMPRESSED = 64  # so that a toy is compressed; in this process only
    config = TrainingConfig(**{**LOOP, **settings})
    with joined(config) as world:
        model, calls = make_model(), itertools.count(1)
        objective = CausalLoss(model, config)

        def poked(batch):
            call = next(calls) if batch.keys and len(batch.keys) > 1 else 0  # a look into single rows does not count
            if call == at_call and world.rank == stop_rank:
                os.kill(os.getpid(), signal.SIGTERM)
            if call == at_call and world.rank == dead_rank:
                os.kill(os.getpid(), signal.SIGKILL)
            return objective(batch) * (30.0 if odd in batch.keys else 1.0)

        if dies_writing is not None:
            die_in_flush(dies_writing)
        tokenizer = SimpleNamespace(vocab_size=61, bytes_of=lambda token, skip_special: b"abc")
        run = Run(
            config=config, source=BatchSource(ToyOrder(num_rows=64), config, rows_in_one_epoch=64),
            objective=poked if noise is None else NoisyLoss(objective, noise),
            folder=Path(folder), seed=3, title="test", world=world, identity={"config": config.identity()},
            validate=Validation(model, [HeldOut(ToyOrder(seed=1))], config, tokenizer, world),
        )  # fmt: skip
        try:
            summary = train(model, run, Console(quiet=True))
        except Stopped as stopped:
            return stopped.message
        weights = b"".join(p.detach().float().numpy().tobytes() for p in model.parameters())
        return summary, hashlib.sha256(weights).hexdigest()


def die_in_flush(number):
    """kill -9 as this process begins its n-th flush to the disk."""
    flush, count = os.fsync, itertools.count(1)

    def dying(handle):
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(handle)

    os.fsync = dying


@pytest.fixture
def start(groups, tmp_path):
    """What the members return; all must end well, but for those that are to die."""

    def run(processes, folder, *, dead=None, **how):
        how = {"settings": {}, **how, "folder": str(tmp_path / folder)}
        codes, returned = groups.run("test_loop_together.trained", processes, tmp_path / "group", **how)
        assert [code == 0 for code in codes] == [dead is None] * len(codes), returned[0]
        assert dead is None or codes[dead] == signal.SIGKILL
        return returned

    run.folder = tmp_path
    return run


def steps_of(folder):
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("mode", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(start, mode):
    settings = {"parallel": {"mode": mode}}
    ((_, whole),) = start(0, "whole", settings=settings)
    for folder, before, after in (("grown", 0, 2), ("shrunk", 2, 0)):
        last = 3 if before else 2  # one process makes two micro-batches a step
        assert {*start(before, folder, settings=settings, stop_rank=0)} == {f"asked to stop after step {last}"}
        (summary, found), *_ = start(after, folder, settings=settings)
        assert (summary.resumed_from_step, found) == (last, whole)
        assert steps_of(start.folder / folder) == [1, 2, 3, 4, 5, 6]


def test_a_signal_to_one_process_saves_the_same_step_in_all(start):
    (_, whole), _ = start(2, "whole")
    assert start(2, "stopped", stop_rank=1) == ["asked to stop after step 3"] * 2
    saved = sorted(each.name for each in (start.folder / "stopped/checkpoints").glob("step-*"))
    assert saved == ["step-00000002", "step-00000003"]
    (summary, found), _ = start(2, "stopped")
    assert (summary.resumed_from_step, found) == (3, whole)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_is_an_error_of_the_other_and_the_run_goes_on(start, rank):
    """Killed twice, the second time while it resumes."""
    (_, whole), _ = start(2, "whole")
    for call in (3, 1):
        returned = start(2, "killed", dead=rank, dead_rank=rank, at_call=call)
        assert "another process of this run is gone" in returned[1 - rank]
    (summary, found), _ = start(2, "killed")
    assert (summary.resumed_from_step, found) == (2, whole)
    assert steps_of(start.folder / "killed") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("flushes", [3, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 7))])
@pytest.mark.parametrize("mode", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_killed_while_a_checkpoint_is_written_beside_the_training_nothing_is_lost(start, mode, flushes):
    settings = {"async_checkpoints": True, "parallel": {"mode": mode}}
    (_, whole), _ = start(2, "whole", settings=settings)
    for _ in range(2):
        start(2, "killed", settings=settings, dead=0, dies_writing=flushes)
    (_, found), _ = start(2, "killed", settings=settings)
    assert found == whole
    left = [
        sorted(each.name for each in (start.folder / name / "checkpoints").iterdir()) for name in ("whole", "killed")
    ]
    assert left[0] == left[1]


@pytest.mark.parametrize("mode", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_roll_back_is_the_same_in_all_processes(start, mode):
    settings = {
        "max_steps": 8, "on_spike": "rollback", "spike_window": 4, "spike_skip_steps": 1, "spike_threshold": 20.0,
    }  # fmt: skip
    odd = "toy:45"  # in step 6, with the second process
    ((alone, weights),) = start(0, "alone", settings=settings, odd=odd)
    (first, found), (second, _) = start(2, "together", settings={**settings, "parallel": {"mode": mode}}, odd=odd)
    assert alone.skipped_steps == first.skipped_steps == second.skipped_steps == 1
    assert found == weights
    journals = [(start.folder / name / "checkpoints/journal.jsonl").read_text() for name in ("alone", "together")]
    assert '"skip": [6]' in journals[0] and journals[0].splitlines()[1:] == journals[1].splitlines()[1:]
    pages = [(start.folder / name / "forensics/step-6.html").read_text() for name in ("alone", "together")]
    assert all(page.index("toy:45") < page.index("toy:44") for page in pages)


@pytest.mark.parametrize("mode", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_the_best_weights_and_the_early_stop_are_the_same_in_all_processes(start, mode):
    settings = {
        "max_steps": 30, "learning_rate": 5e-2, "schedule": "constant", "evaluate_every_steps": 1, "publish": "best",
        "early_stop_patience": 3, "checkpoint_every_steps": 5, "keep_final_checkpoint": False,
    }  # fmt: skip
    ((alone, weights),) = start(0, "alone", settings=settings)
    (first, found), (second, _) = start(2, "together", settings={**settings, "parallel": {"mode": mode}})
    assert alone.stopped_early_after_step is not None and alone.best_step == alone.stopped_early_after_step - 3
    for summary in (first, second):
        assert summary.best_step == alone.best_step
        assert summary.stopped_early_after_step == alone.stopped_early_after_step
        assert summary.validation == pytest.approx(alone.validation, rel=1e-6)
    assert found == weights


LEAN = {"optimizer": "adamw_8bit", "stochastic_rounding": True, "precision": "bf16", "max_grad_norm": 1.0}


@pytest.mark.parametrize("settings", [{}, LEAN, pytest.param({"optimizer": "muon"}, marks=pytest.mark.slow)])
def test_whole_models_stay_the_same_in_all_processes_also_where_they_are_rounded_by_chance(start, settings):
    ((_, alone),) = start(0, "alone", settings=settings)
    (_, first), (_, second) = start(2, "together", settings=settings)
    assert first == second == alone


def test_noise_on_embeddings_is_that_of_one_process(start):
    ((_, alone),) = start(0, "alone", noise=5.0)
    (_, first), (_, second) = start(2, "together", noise=5.0)
    ((_, quiet),) = start(0, "quiet")
    assert first == second == alone != quiet
