"""Two runs in one folder: the second waits, and is refused when the first does not end."""

import subprocess
import sys
import threading

import pytest
import torch

from leveret.console import Console
from leveret.errors import ConfigError, TrainingError
from leveret.ranks import Ranks
from leveret.trainer.claim import claimed
from leveret.trainer.world import World

ALONE = World(torch.device("cpu"))


@pytest.fixture
def console(tmp_path):
    return Console(quiet=True, log=tmp_path / "log")


def test_the_second_run_is_refused_and_leaves_the_first_alone(tmp_path, console):
    folder = tmp_path / "run"
    with claimed(folder, ALONE, console):
        refusal = pytest.raises(TrainingError, match=r"another process is at work in .*run\nhint: .*output=")
        with refusal, claimed(folder, ALONE, console, wait_seconds=0.2):
            raise AssertionError("two at once")
        with claimed(tmp_path / "other", ALONE, console, wait_seconds=0):
            pass
    with claimed(folder, ALONE, console, wait_seconds=0):
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("below", ["", "run", "run/deeper"])
def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path, console, below):
    (tmp_path / "file").touch()
    refusal = pytest.raises(ConfigError, match=r"must be a folder, but .*/file is a file\n.*output=")
    with refusal, claimed(tmp_path / "file" / below, ALONE, console):
        raise AssertionError("nowhere to work")


HOLD = """
import fcntl, os, sys, time
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print(flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_run_that_ends_meanwhile_makes_room(tmp_path, console, how):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"\n"
    timer = threading.Timer(0.3, getattr(process, how))
    timer.start()
    with claimed(tmp_path, ALONE, console, wait_seconds=30):
        assert process.wait() != 0
    process.stdout.close()
    assert "waiting up to 30 s for its end" in console.log.read_text()


def test_of_several_processes_the_first_one_claims(tmp_path, console):
    ranks = Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2, address="a", port=1)
    second = World(torch.device("cpu"), ranks=ranks)
    with claimed(tmp_path / "run", ALONE, console), claimed(tmp_path / "run", second, console, wait_seconds=0):
        pass


def test_a_run_that_could_not_begin_leaves_no_folder_and_takes_none_away(tmp_path, console):
    for folder, left in ((tmp_path / "new", False), (tmp_path / "empty", True)):
        if left:
            folder.mkdir()
        with pytest.raises(ZeroDivisionError), claimed(folder, ALONE, console):
            raise ZeroDivisionError
        assert folder.exists() == left
    with claimed(tmp_path / "new", ALONE, console):
        (tmp_path / "new/log").touch()
    assert (tmp_path / "new/log").exists()


def test_a_run_that_waited_for_one_that_could_not_begin_has_a_folder(tmp_path, console):
    folder = tmp_path / "run"
    first = claimed(folder, ALONE, console)
    first.__enter__()
    timer = threading.Timer(0.3, first.__exit__, (None, None, None))
    timer.start()
    with claimed(folder, ALONE, console, wait_seconds=30):
        (folder / "log").touch()
    timer.join()
    assert (folder / "log").exists()
