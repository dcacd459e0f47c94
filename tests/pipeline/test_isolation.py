"""A stage has a process of its own: its errors arrive here, its death is named, and it never outlives the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from leveret.console import Console
from leveret.errors import DataError, LeveretError
from leveret.pipeline import isolation
from leveret.pipeline.config import RunConfig
from leveret.pipeline.run import run

Calls = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def fork_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """These stages need no torch, and a fresh interpreter is quick without it."""
    import multiprocessing

    monkeypatch.setattr(isolation, "_clean_processes", lambda: multiprocessing.get_context("spawn"))


def go(quiet: Console, *overrides: str, until: str = "write") -> None:
    run(RunConfig(recipe=Path("tale.yaml"), overrides=overrides, until=until), quiet)


def test_stages_run_in_other_processes_and_log_to_the_same_file(workshop: Path, quiet: Console) -> None:
    go(quiet)
    (line,) = (workshop / "calls.log").read_text().splitlines()
    assert int(line.split()[1]) != os.getpid()
    assert "writing one" in (workshop / "runs/tale/log.txt").read_text()


def test_an_error_for_people_arrives_whole(workshop: Path, quiet: Console) -> None:
    with pytest.raises(DataError) as caught:
        go(quiet, "write.then=fail")
    assert str(caught.value) == "words.txt:3: no such word\nhint: write it down"
    assert (caught.value.exit_code, caught.value.line) == (3, 3)


def test_a_bug_arrives_with_its_traceback(workshop: Path, quiet: Console) -> None:
    with pytest.raises(isolation.StageBug, match=r"(?s)in write.*ZeroDivisionError: ours"):
        go(quiet, "write.then=bug")


def test_a_crash_in_native_code_is_named(workshop: Path, quiet: Console) -> None:
    with pytest.raises(LeveretError, match="the process of leveret write was ended by SIGABRT"):
        go(quiet, "write.then=crash")


START = """
import sys
from pathlib import Path
sys.path.insert(0, {modules!r})
from leveret.commands import COMMANDS, Command
import multiprocessing
from leveret.pipeline import isolation
if {spawn}:
    isolation._clean_processes = lambda: multiprocessing.get_context("spawn")
from leveret.cli.main import main
if __name__ == "__main__":
    for name in ("write", "join"):
        COMMANDS[name] = Command(name=name, help="", config="{module}:" + name.title() + "Config",
                                 run="{module}:" + name)
    sys.exit(main(["run", "tale.yaml", "write.then=hang once"]))
"""


KINDS = pytest.mark.parametrize(
    "spawn",
    [
        pytest.param(True, id="spawned"),
        pytest.param(
            False,
            id="forked",
            marks=[pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forked on Linux only")],
        ),
    ],
)


def start(workshop: Path, spawn: bool) -> tuple[subprocess.Popen[str], int]:
    """A run whose first stage hangs; the run's process and the stage's process id."""
    modules = workshop.parent / "modules"
    (module,) = modules.glob("*.py")
    script = workshop / "start.py"
    script.write_text(START.format(modules=str(modules), module=module.stem, spawn=spawn))
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit "ignore"
    try:
        process = subprocess.Popen(
            [sys.executable, script], text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
    finally:
        signal.signal(signal.SIGINT, ignored)
    begun = workshop / "runs/tale/write/begun"
    deadline = time.monotonic() + 30
    while not (begun.exists() and begun.read_text()):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process, int(begun.read_text())


def wait_until_gone(process: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{process}/stat").read_text().split(") ")[1][0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.02)
    raise AssertionError(f"process {process} is still there")


@KINDS
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_a_killed_run_takes_its_stage_along_and_the_next_run_goes_on(
    workshop: Path, quiet: Console, spawn: bool
) -> None:
    process, stage = start(workshop, spawn)
    process.kill()
    process.communicate()
    wait_until_gone(stage)
    run(RunConfig(recipe=Path("tale.yaml"), overrides=("write.then=hang once",)), quiet)
    assert (workshop / "runs/tale/join/joined.txt").read_text() == "one 100 7|two 5 7"
    assert "write was interrupted; it goes on" in (workshop / "runs/tale/log.txt").read_text()


@KINDS
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_an_interrupt_reaches_the_stage_and_ends_the_run_with_130(workshop: Path, spawn: bool) -> None:
    process, stage = start(workshop, spawn)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted; the same command goes on from here" in shown
    assert "Traceback" not in shown
    wait_until_gone(stage)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_sigterm_reaches_the_stage_and_ends_the_run_with_143(workshop: Path) -> None:
    process, stage = start(workshop, spawn=True)
    process.terminate()
    _, shown = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "write was asked to stop" in shown and "run the same command again" in shown
    wait_until_gone(stage)


FORK = """
import sys
sys.path.insert(0, {modules!r})
from pathlib import Path
from leveret.commands import Command
from leveret.console import Console
from leveret.pipeline.isolation import run_isolated
if __name__ == "__main__":
    import fork_target
    command = Command(name="look", help="", config="fork_target:Look", run="fork_target:look")
    for _ in range(2):
        result = run_isolated(command, fork_target.Look(), Console(quiet=True), lock=Path(".stage-lock"))
        print(result.summary)
    print("torch" in sys.modules)
"""
TARGET = """
import os, sys
from leveret.commands import StageResult
from leveret.config import Config
class Look(Config):
    pass
def look(config, console):
    return StageResult(output=None, summary={"torch": "torch" in sys.modules, "parent": os.getppid()})
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="stages are forked on Linux only")
def test_on_linux_stages_are_forked_from_one_process_that_knows_torch(workshop: Path) -> None:
    modules = workshop.parent / "modules"
    (modules / "fork_target.py").write_text(TARGET)
    (workshop / "fork.py").write_text(FORK.format(modules=str(modules)))
    shown = subprocess.run([sys.executable, "fork.py"], capture_output=True, text=True, check=True).stdout.splitlines()
    first, second, here = shown
    assert first == second and "'torch': True" in first, shown
    assert here == "False"
