"""Commands side by side: all end well, or all are ended."""

import os
import signal
import sys
import threading
import time

import pytest

from leveret.console import Console
from leveret.launch.together import run_together
from leveret.launch.torchrun import Start

QUIET = Console(quiet=True)


def start(name, code, **environment):
    return Start(host=name, arguments=(sys.executable, "-c", code), environment=environment)


def test_all_end_well_and_get_their_variables():
    code = "import os, sys; sys.exit(os.environ['SAID'] != 'hello')"
    assert run_together([start("a", code, SAID="hello"), start("b", "pass")], grace_seconds=1, console=QUIET) == (
        0,
        None,
    )


def test_the_first_that_fails_ends_the_others_politely(tmp_path):
    polite = (
        "import signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'saved')!r}).touch(), sys.exit(3)))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    failing = (
        "import sys, time, pathlib\n"
        f"while not pathlib.Path({str(tmp_path / 'ready')!r}).exists(): time.sleep(0.01)\n"
        "sys.exit(7)\n"
    )
    began = time.monotonic()
    console = Console(quiet=True, log=tmp_path / "log")
    code, ended_by = run_together([start("a", polite), start("b", failing)], grace_seconds=20, console=console)
    assert (code, ended_by) == (7, None)
    assert (tmp_path / "saved").exists()
    assert time.monotonic() - began < 15
    assert "b ended with code 7" in (tmp_path / "log").read_text()


def test_one_that_does_not_end_is_killed():
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    began = time.monotonic()
    late = "import sys, time; time.sleep(0.5); sys.exit(1)"
    code, _ = run_together([start("a", stubborn), start("b", late)], grace_seconds=0.3, console=QUIET)
    assert code == 1
    assert time.monotonic() - began < 10


def test_a_killed_command_is_a_failure():
    code, _ = run_together([start("a", "import os; os.kill(os.getpid(), 9)")], grace_seconds=1, console=QUIET)
    assert code == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_told(number):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    _, ended_by = run_together([start("a", "import time; time.sleep(60)")], grace_seconds=10, console=QUIET)
    assert ended_by == number
