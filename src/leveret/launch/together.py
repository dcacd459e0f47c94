"""Run some commands side by side: all end well, or all are ended.

The first one that fails ends the others: SIGTERM, which lets a training process finish its step and save, and after a
while SIGKILL. Ctrl-C and SIGTERM to this process are passed on in the same way. Should this process itself be killed,
the system ends its children (on Linux).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import FrameType

from leveret.console import Console
from leveret.launch.agent import said
from leveret.launch.torchrun import Start
from leveret.ranks import end_with_parent

_POLL_SECONDS = 0.1


def run_together(starts: Sequence[Start], *, grace_seconds: float, console: Console) -> tuple[int, int | None]:
    """The exit code of the first command that failed (0 when none did), and the signal that ended this from outside."""
    with _noting_signals() as came:
        running = {start.host: _begin(start) for start in starts}
        code = 0
        deadline: float | None = None
        while None in [process.poll() for process in running.values()]:  # a list: each must be asked
            failed = {host: process.returncode for host, process in running.items() if process.returncode}
            if deadline is None and (failed or came):
                for host, status in failed.items():
                    console.warn(f"{host} ended with {said(status)}; ending all")
                code = next(iter(failed.values()), 0)
                deadline = time.monotonic() + grace_seconds
                _signal(running.values(), came[0] if came else signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                _signal(running.values(), signal.SIGKILL)
                deadline = float("inf")
            time.sleep(_POLL_SECONDS)
        code = code or next((process.returncode for process in running.values() if process.returncode), 0)
    return code, came[0] if came else None


def _begin(start: Start) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        start.arguments,
        env={**os.environ, **start.environment},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # what the terminal sends comes from here, once
        preexec_fn=partial(end_with_parent, os.getpid()),
    )


def _signal(processes: Iterable[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(process.pid, number)
                else:
                    process.send_signal(number)


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
