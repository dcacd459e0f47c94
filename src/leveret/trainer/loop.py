"""The loop: step after step, with a record, validation, checkpoints, and a clean end whatever happens.

    for each step not yet done:  batches(step) -> one optimizer step -> record -> validate? -> checkpoint?

Every step starts by seeding the random generators with (seed, step), so a step is a pure function of the weights, the
optimizer, the seed and its number. That is the whole secret of bit-exact resume: kill -9 at any moment, run the same
command, and the last checkpoint plus the remaining steps give the weights an uninterrupted run would have given.

SIGTERM and Ctrl-C finish the step, save, and end (exit code 143 or 130). Before each update rescue.py judges the loss;
a run that goes back and skips a step is the run that never made that update, to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from leveret.allocator import keep_freed_memory
from leveret.console import Console
from leveret.errors import CheckpointError, NonFiniteLoss, Stopped
from leveret.kernels.native.library import choose
from leveret.precision.fp8_scaling import Scaling
from leveret.trainer.background import BackgroundWriter
from leveret.trainer.batches import BatchSource
from leveret.trainer.best import LOSS, Best
from leveret.trainer.checkpoint import Checkpoints
from leveret.trainer.clock import Clock
from leveret.trainer.config import TrainingConfig
from leveret.trainer.forensics import Forensics, Origins
from leveret.trainer.fp8 import in_fp8, with_scales
from leveret.trainer.journal import Journal
from leveret.trainer.memory import peak_memory_bytes
from leveret.trainer.metrics import Metrics, NoMetrics
from leveret.trainer.optimizer import build_optimizer
from leveret.trainer.parallel import DTYPES, placed
from leveret.trainer.recompute import recomputed_layers
from leveret.trainer.reporters import open_reporters
from leveret.trainer.rescue import Rescue, Setback
from leveret.trainer.routing import freeze_routers
from leveret.trainer.schedule import Schedule
from leveret.trainer.snapshot import Snapshot
from leveret.trainer.step import Objective, StepResult, WatchingObjective, optimizer_step
from leveret.trainer.stopping import StopRequest, listen_for_stop
from leveret.trainer.summary import TrainingSummary
from leveret.trainer.world import World, device_of

if TYPE_CHECKING:
    from leveret.tokenizer.files import Tokenizer

Validate = Callable[[], dict[str, float]]
"""Measures the model as it is; the values go into the record (`validation_loss` is drawn beside the loss)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything `train` needs besides the model."""

    config: TrainingConfig
    source: BatchSource
    objective: Objective
    folder: Path
    """Gets checkpoints/, metrics.jsonl and metrics.html."""
    identity: Mapping[str, Any]
    """What decides what is learnt (see checkpoint.py)."""
    seed: int
    title: str
    validate: Validate | None = None
    tokenizer: Tokenizer | None = None
    """To show the rows of a step in question as text."""
    origins: Origins | None = None
    """Which documents a row holds; None: the row's own key says it."""
    world: World | None = None
    """The processes that share the run; None: this one alone."""


def train(model: nn.Module, run: Run, console: Console) -> TrainingSummary:
    """Train `model` in place, from the last good checkpoint if there is one, and return how it went.

    Afterwards the model holds the final weights (or the best ones, with `publish: best`) in the dtype of
    `config.precision`; checkpoints are still there (the caller saves the model, then clears them). Raises Stopped after
    SIGTERM, NonFiniteLoss, CheckpointError.
    """
    world = run.world or World(device_of(run.config.device, None))
    if run.config.freeze_router:
        freeze_routers(model)
    with in_fp8(model, run.config, world, console) as scaling, placed(model, run.config, world, console):
        return _train(model, run, world, console, scaling)


def _train(model: nn.Module, run: Run, world: World, console: Console, scaling: Scaling | None) -> TrainingSummary:
    training = _Training(model, run, world, console, scaling)
    status = "failed"
    model.train()
    try:
        with keep_freed_memory(console), recomputed_layers(model, run.config.recompute), listen_for_stop() as stop:
            summary = training.make_steps(stop)
            training.finish()
        status = "done" if summary.stopped_early_after_step is None else "stopped early"
        summary.peak_memory_bytes = peak_memory_bytes(world.device)
        return summary
    except (Stopped, KeyboardInterrupt):
        status = "stopped"
        raise
    finally:
        model.eval()
        training.close(status)


def checkpoints_of(
    folder: Path, identity: Mapping[str, Any], config: TrainingConfig, console: Console, world: World | None = None
) -> Checkpoints:
    """The checkpoints of the run in `folder`."""
    reach = config.spike_skip_steps - 1 if config.rolls_back else 0
    return Checkpoints(
        folder / "checkpoints",
        identity=identity,
        keep=config.keep_checkpoints,
        reach=reach,
        console=console,
        world=world,
    )


class _Training:
    """One call of `train`: the parts of a run, and how they work together."""

    def __init__(self, model: nn.Module, run: Run, world: World, console: Console, scaling: Scaling | None) -> None:
        self.run, self.config, self.world, self.console = run, run.config, world, console
        self.schedule = Schedule(config=run.config, total_steps=run.source.total_steps)
        self.checkpoints = checkpoints_of(run.folder, run.identity, run.config, console, world)
        self.best = Best(run.config, self.checkpoints, validates=run.validate is not None)
        self.journal = Journal(self.checkpoints.folder, run.identity, writes=world.is_main)
        forensics = Forensics(
            run.folder, model, run.objective, tokenizer=run.tokenizer, origins=run.origins, world=world,
            updates_in_backward=run.config.optimizer_in_backward,
        )  # fmt: skip
        self.rescue = Rescue(run.config, self.checkpoints, self.journal, forensics, console)
        self.writer = BackgroundWriter(enabled=run.config.async_checkpoints)
        dtype = DTYPES[run.config.precision]
        optimizer = build_optimizer(model, run.config, dtype=dtype, seed=run.seed, world=world)
        self.optimizer = with_scales(optimizer, scaling, world)
        done = self._resume()
        if done:
            console.info(f"resuming after step {done:,} of {self.schedule.total_steps:,}")
        if world.device.type == "cpu":
            console.info(f"kernels: {choose().reason}")
        if run.config.rolls_back and self.checkpoints.oldest_step() is None:
            self._save(0)
        self.summary = TrainingSummary(steps=self.schedule.total_steps, resumed_from_step=done)
        self.metrics = self._metrics(done) if world.is_main else NoMetrics()
        self.clock = Clock()

    def _metrics(self, done: int) -> Metrics:
        run, total = self.run, self.schedule.total_steps
        reporters = open_reporters(run.config.report_to, run.folder, title=run.title, identity=run.identity)
        return Metrics(run.folder, title=run.title, total_steps=total, steps_done=done, reporters=reporters)

    def make_steps(self, stop: StopRequest) -> TrainingSummary:
        """Every step not yet done; returns early when validation no longer improves. Raises Stopped after SIGTERM."""
        done, total, summary = self.summary.resumed_from_step, self.schedule.total_steps, self.summary
        with self.console.progress(self.run.title, total, "step", start=done) as progress:
            while done < total and not self.best.is_given_up:
                self.writer.check()
                try:
                    result, values = self._step(done)
                except Setback:
                    done = self._go_back()
                    continue
                done += 1
                if result is not None:
                    summary.loss = result.loss
                    rate = f"{self.clock.rate():,.0f}"
                    progress.update(done, loss=f"{result.loss:.3f}", tokens_per_second=rate, **self._more_progress())
                self._look_up(done, result, values)
                self._save_if_due(done, self._told_to_stop(stop))
        summary.stopped_early_after_step = done if done < total else None
        return summary

    def finish(self) -> None:
        """After the last step: figures, and the best weights if they are asked for."""
        self.writer.wait()
        self.summary.skipped_steps = len(self.journal.skipped)
        self.summary.best_step = self.best.step if self.best.saves else None
        if self.run.validate and not self.summary.validation:  # it was killed after its last checkpoint
            self.summary.validation = self.run.validate()
        if self.config.publish == "best" and self.best.step is not None:
            self.best.load(self.optimizer)
            self.summary.validation = self.best.values
            self.console.info(
                f"publishing the weights after step {self.best.step:,}, of the lowest {LOSS}: {self.best.loss:.4f}"
            )

    def close(self, status: str) -> None:
        """Let go of everything, whatever happened."""
        try:
            self.writer.wait()
        except CheckpointError as error:  # something else has ended the run already
            self.console.warn(error.message)
        self.optimizer.close()
        self.metrics.close(status=status)

    def _step(self, step: int) -> tuple[StepResult | None, dict[str, Any]]:
        """One step, and what must be told about it; no result when it is skipped."""
        if (reason := self.journal.reason_to_skip(step)) is not None:
            return None, {"skipped": reason}
        seed_everything(self.run.seed, step, self.world.rank)
        batches = self.run.source.step(step, rank=self.world.rank, num_ranks=self.world.size)
        values: dict[str, Any] = {}

        def judge(found: StepResult) -> None:
            if self.rescue.judge(step, batches, found) is not None:
                self.summary.spikes += 1
                values["spike"] = True

        try:
            result = optimizer_step(
                self.run.objective, batches, self.optimizer, step=step, learning_rate=self.schedule.at(step),
                world=self.world, before_update=judge,
            )  # fmt: skip
        except NonFiniteLoss as error:
            self.rescue.non_finite(step, batches, error)
        self.clock.add(result.tokens)
        self.summary.tokens, self.summary.seconds = self.clock.tokens, self.clock.seconds()
        return result, values

    def _look_up(self, done: int, result: StepResult | None, values: dict[str, Any]) -> None:
        """Validate and write a line of the record, each when it is due."""
        last = done == self.schedule.total_steps
        if self.run.validate and (last or _is_due(done, self.config.evaluate_every_steps)):
            with self.clock.paused():
                self.summary.validation = self.run.validate()
            values |= self.summary.validation
            if self.best.see(self.summary.validation, done) and self.best.saves:
                with self.clock.paused():
                    self.best.save(self.writer, self._snapshot(done))
            last = last or self.best.is_given_up
        if result is not None and (values or last or done == 1 or _is_due(done, self.config.log_every_steps)):
            values |= _record(result, self.clock)
            if isinstance(self.run.objective, WatchingObjective):
                values |= self.run.objective.record(self.world, self.console)
        if values:
            self.metrics.write(done, **values)

    def _more_progress(self) -> dict[str, str]:
        objective = self.run.objective
        return objective.progress() if isinstance(objective, WatchingObjective) else {}

    def _told_to_stop(self, stop: StopRequest) -> signal.Signals | None:
        """The signal that some process got; all stop after the same step."""
        number = round(self.world.largest(stop.signal or 0))
        return signal.Signals(number) if number else None

    def _save_if_due(self, done: int, stop: signal.Signals | None) -> None:
        """Save the state when it is time, when the run ends and that is asked for, and when it is told to end."""
        last = done == self.schedule.total_steps or self.best.is_given_up
        due = stop or _is_due(done, self.config.checkpoint_every_steps)
        if self.config.keep_final_checkpoint if last else due:
            self._save(done)
        if stop and not last:
            self.writer.wait()
            _leave(stop, done, self.checkpoints.folder_of(done), self.console)

    def _save(self, done: int) -> None:
        clock = self.clock.paused() if done else contextlib.nullcontext()
        with clock:
            self.writer.write(self.checkpoints, self._snapshot(done))

    def _snapshot(self, done: int) -> Snapshot:
        progress = self.rescue.state() | self.best.state()
        return Snapshot.of(self.optimizer, done, progress, processes=self.world.size)

    def _resume(self) -> int:
        """Take over the newest checkpoint that the journal leaves good; the steps done there."""
        found = self.checkpoints.resume(
            self.optimizer, accept=lambda manifest: self.journal.accepts(manifest) and self.best.accepts(manifest)
        )
        progress = {} if found is None else found.progress
        self.rescue.restore(progress)
        done = 0 if found is None else found.step
        self.best.restore(progress, done)
        return done

    def _go_back(self) -> int:
        """To the newest checkpoint before the steps that are skipped from now on; the steps done there."""
        self.writer.wait()
        done = self._resume()
        self.metrics.go_back(done)
        self.console.warn(f"rolled back: going on after step {done:,}")
        return done


def _leave(stop: signal.Signals, steps_done: int, folder: Path, console: Console) -> None:
    console.info(f"stopping after step {steps_done:,}: saved {folder}")
    if stop == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(f"asked to stop after step {steps_done:,}", hint="run the same command again to go on from there")


def seed_everything(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch, numpy and Python from (seed, step), so that whatever is random in a step depends on nothing else.

    Of several processes each draws numbers of its own: they hold other rows.
    """
    digest = hashlib.sha256(f"{seed}:{step}".encode() + (f":{rank}".encode() if rank else b"")).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    np.random.seed(int.from_bytes(digest[8:12], "little"))
    random.seed(digest)


def _is_due(steps_done: int, every: int | None) -> bool:
    return every is not None and steps_done % every == 0


def _record(result: StepResult, clock: Clock) -> dict[str, float]:
    return {
        "loss": result.loss,
        "learning_rate": result.learning_rate,
        "gradient_norm": result.gradient_norm,
        "trained_tokens": result.trained_tokens,
        "tokens_per_second": round(clock.lap(), 1),
    }
