"""The loop: step after step, with a record, validation, checkpoints, and a clean end whatever happens.

    for each step not yet done:  batches(step) -> one optimizer step -> record -> validate? -> checkpoint?

Every step starts by seeding the random generators with (seed, step), so a step is a pure function of the weights, the
optimizer, the seed and its number. That is the whole secret of bit-exact resume: kill -9 at any moment, run the same
command, and the last checkpoint plus the remaining steps give the weights an uninterrupted run would have given.

SIGTERM and Ctrl-C finish the step, save, and end (exit code 143 or 130). A non-finite loss ends the run before the
update; the checkpoints before it stay.
"""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from leveret.console import Console
from leveret.errors import Stopped
from leveret.kernels.native.library import choose
from leveret.trainer.batches import BatchSource
from leveret.trainer.checkpoint import Checkpoints
from leveret.trainer.config import TrainingConfig
from leveret.trainer.memory import keep_freed_memory, peak_memory_bytes
from leveret.trainer.metrics import Metrics
from leveret.trainer.optimizer import Optimizer, build_optimizer
from leveret.trainer.recompute import recomputed_layers
from leveret.trainer.schedule import Schedule
from leveret.trainer.step import Objective, StepResult, optimizer_step
from leveret.trainer.stopping import StopRequest, listen_for_stop

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

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


@dataclass(kw_only=True)
class TrainingSummary:
    """How a run went; figures cover the steps made by this process."""

    steps: int
    resumed_from_step: int
    seconds: float = 0.0
    tokens: int = 0
    loss: float | None = None
    peak_memory_bytes: int | None = None
    """Of the process, or of the accelerator."""
    validation: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For the stage's summary."""
        rate = round(self.tokens / self.seconds) if self.seconds else None
        figures = {key: value for key, value in vars(self).items() if key != "validation"}
        figures |= {"seconds": round(self.seconds, 2), "tokens_per_second": rate, **self.validation}
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}


def train(model: nn.Module, run: Run, console: Console) -> TrainingSummary:
    """Train `model` in place, from the last good checkpoint if there is one, and return how it went.

    Afterwards the model holds the final weights in the dtype of `config.precision`; checkpoints are still there (the
    caller saves the model, then clears them). Raises Stopped after SIGTERM, NonFiniteLoss, CheckpointError.
    """
    schedule = Schedule(config=run.config, total_steps=run.source.total_steps)
    optimizer = build_optimizer(model, run.config, dtype=DTYPES[run.config.precision], seed=run.seed)
    checkpoints = checkpoints_of(run.folder, run.identity, run.config, console)
    resumed = checkpoints.resume(optimizer)
    done = 0 if resumed is None else resumed.step
    if done:
        console.info(f"resuming after step {done:,} of {schedule.total_steps:,}")
    if next(model.parameters()).device.type == "cpu":
        console.info(f"kernels: {choose().reason}")
    metrics = Metrics(run.folder, title=run.title, total_steps=schedule.total_steps, steps_done=done)
    status = "failed"
    model.train()
    try:
        with keep_freed_memory(console), recomputed_layers(model, run.config.recompute), listen_for_stop() as stop:
            summary = _steps(run, schedule, optimizer, checkpoints, metrics, console, done, stop)
        status = "done"
        summary.peak_memory_bytes = peak_memory_bytes(next(model.parameters()).device)
        return summary
    except (Stopped, KeyboardInterrupt):
        status = "stopped"
        raise
    finally:
        model.eval()
        optimizer.close()
        metrics.close(status=status)


def checkpoints_of(folder: Path, identity: Mapping[str, Any], config: TrainingConfig, console: Console) -> Checkpoints:
    """The checkpoints of the run in `folder`."""
    return Checkpoints(folder / "checkpoints", identity=identity, keep=config.keep_checkpoints, console=console)


def _steps(
    run: Run, schedule: Schedule, optimizer: Optimizer, checkpoints: Checkpoints, metrics: Metrics, console: Console,
    done: int, stop: StopRequest,
) -> TrainingSummary:  # fmt: skip
    config, total = run.config, schedule.total_steps
    summary = TrainingSummary(steps=total, resumed_from_step=done)
    clock = _Clock()
    with console.progress(run.title, total, "step", start=done) as progress:
        for step in range(done, total):
            seed_everything(run.seed, step)
            result = optimizer_step(
                run.objective, run.source.step(step), optimizer, step=step, learning_rate=schedule.at(step)
            )
            steps_done, last = step + 1, step + 1 == total
            clock.add(result)
            summary.loss, summary.tokens, summary.seconds = result.loss, clock.tokens, clock.seconds()
            progress.update(steps_done, loss=f"{result.loss:.3f}", tokens_per_second=f"{clock.rate():,.0f}")
            values = _record(result, clock) if last or step == 0 or steps_done % config.log_every_steps == 0 else {}
            if run.validate and (last or _is_due(steps_done, config.evaluate_every_steps)):
                with clock.paused():
                    summary.validation = run.validate()
                values |= summary.validation
            if values:
                metrics.write(steps_done, **values)
            due = stop or _is_due(steps_done, config.checkpoint_every_steps)
            if config.keep_final_checkpoint if last else due:
                with clock.paused():
                    folder = checkpoints.save(steps_done, optimizer)
                if stop:
                    _leave(stop, steps_done, folder, console)
    return summary


def _leave(stop: StopRequest, steps_done: int, folder: Path, console: Console) -> None:
    console.info(f"stopping after step {steps_done:,}: saved {folder}")
    if stop.signal == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(f"asked to stop after step {steps_done:,}", hint="run the same command again to go on from there")


def seed_everything(seed: int, step: int) -> None:
    """Seed torch, numpy and Python from (seed, step), so that whatever is random in a step depends on nothing else."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    np.random.seed(int.from_bytes(digest[8:12], "little"))
    random.seed(digest)


def _is_due(steps_done: int, every: int | None) -> bool:
    return every is not None and steps_done % every == 0


def _record(result: StepResult, clock: _Clock) -> dict[str, float]:
    return {
        "loss": result.loss,
        "learning_rate": result.learning_rate,
        "gradient_norm": result.gradient_norm,
        "trained_tokens": result.trained_tokens,
        "tokens_per_second": round(clock.lap(), 1),
    }


class _Clock:
    """Training time without validation and saving: tokens and seconds in all, and since the last line written."""

    def __init__(self) -> None:
        self.tokens = 0
        self._started = time.perf_counter()
        self._lap = (0, 0.0)

    def add(self, result: StepResult) -> None:
        self.tokens += result.tokens

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def rate(self) -> float:
        """Tokens a second since the start of this process."""
        return self.tokens / max(self.seconds(), 1e-9)

    def lap(self) -> float:
        """Tokens a second since the last lap."""
        now = (self.tokens, self.seconds())
        rate = (now[0] - self._lap[0]) / max(now[1] - self._lap[1], 1e-9)
        self._lap = now
        return rate

    def paused(self) -> _Pause:
        return _Pause(self)

    def skip(self, seconds: float) -> None:
        self._started += seconds


class _Pause:
    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock.skip(time.perf_counter() - self.began)
