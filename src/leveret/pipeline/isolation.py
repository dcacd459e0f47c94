"""One process for each stage, all forked from one that has imported torch and done nothing else.

Why not run the stages in one process: (1) a stage that is resumed after a kill must begin in the same state
(random generators, threads, allocator, compiled code) as one that follows another stage, or "resumed equals
uninterrupted" holds only by luck; (2) the memory of a stage is given back, so the peak is that of the largest
stage and not of their sum; (3) a crash in native code or a kill by the system is one stage's failure with a
name. Why not a new interpreter each: importing torch takes seconds, forking a clean process milliseconds.

The stage's process has its own group, so Ctrl-C and SIGTERM reach it only from here, once. It watches this
process and dies with it, and holds a lock of its own, so a new run cannot meet a dying one.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from leveret.commands import Command, StageResult
from leveret.config import Config
from leveret.console import Console
from leveret.errors import LeveretError, Stopped
from leveret.pipeline.lock import locked
from leveret.ranks import GATHERING

LAST_STAGE_ENDS_SECONDS = 30.0
"""How long to wait for the process of a killed run to be gone."""


class StageBug(Exception):
    """An error in a stage's process that is no LeveretError; the text is its traceback."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is sent to the stage's process."""

    command: Command
    config: Config
    quiet: bool
    log: Path | None
    lock: Path
    gathering: str | None


def run_isolated(
    command: Command, config: Config, console: Console, *, lock: Path, gathering: str | None = None
) -> StageResult:
    """Run a command in a process of its own; its errors are raised here as they were there.

    gathering: under torchrun, what all processes of the group meet for in this stage (see ranks.py).
    """
    context = _clean_processes()
    receiver, sender = context.Pipe(duplex=False)
    job = _Job(command=command, config=config, quiet=console.quiet, log=console.log, lock=lock, gathering=gathering)
    process = context.Process(target=_stage_process, args=(job, sender), name=f"leveret {command.name}")
    process.start()
    sender.close()
    with _signals_forwarded(process) as stopped:
        outcome = _outcome(process, receiver)
    if isinstance(outcome, Stopped):
        raise outcome
    if signal.SIGINT in stopped:
        raise KeyboardInterrupt
    if stopped:
        raise Stopped(f"{command.name} was asked to stop", hint="run the same command again to go on from there")
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _clean_processes() -> ForkServerContext | SpawnContext:
    """Linux forks from a process that knows torch; elsewhere forking is not safe, and interpreters start anew."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    return context


def _outcome(process: BaseProcess, receiver: Connection) -> StageResult | BaseException:
    """What the stage's process sent before it ended."""
    outcome: StageResult | BaseException | None = None
    with suppress(EOFError):
        outcome = receiver.recv()
    process.join()
    return outcome if outcome is not None else _death(process)


def _death(process: BaseProcess) -> LeveretError:
    code = process.exitcode or 0
    if code >= 0:
        return LeveretError(f"the process of {process.name} ended with code {code} and no result")
    name = signal.Signals(-code).name
    hint = "the same command goes on from here"
    if name == "SIGKILL":
        hint = f"the system does this when memory runs out: make batches or the model smaller, or {hint}"
    return LeveretError(f"the process of {process.name} was ended by {name}", hint=hint)


@contextmanager
def _signals_forwarded(process: BaseProcess) -> Iterator[list[int]]:
    """Within the block, SIGINT and SIGTERM go to the stage, which ends politely; the list says which came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)

    before: dict[int, signal.Handlers | int | Callable[[int, FrameType | None], object] | None] = {
        number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stage_process(job: _Job, sender: Connection) -> None:
    """The main function of the stage's process."""
    os.setpgid(0, 0)
    _die_with_parent()
    if job.gathering is not None:
        os.environ[GATHERING] = job.gathering
    console = Console(quiet=job.quiet, log=job.log)
    try:
        with locked(job.lock, wait_seconds=LAST_STAGE_ENDS_SECONDS):
            outcome: StageResult | Exception = job.command.execute(job.config, console)
    except KeyboardInterrupt:
        sys.exit(1)
    except LeveretError as error:
        outcome = error
    except Exception:
        outcome = StageBug(traceback.format_exc())
    sender.send(outcome)
    sender.close()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
