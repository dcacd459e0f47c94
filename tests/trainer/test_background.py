"""Saving beside the training: the same bytes, of the moment they were asked for, and no error is lost."""

import threading

import pytest
import torch
from torch import nn

from leveret.console import Console
from leveret.errors import CheckpointError
from leveret.paths import hash_tree
from leveret.trainer.adamw import AdamW
from leveret.trainer.background import BackgroundWriter
from leveret.trainer.checkpoint import Checkpoints
from leveret.trainer.config import TrainingConfig
from leveret.trainer.snapshot import Snapshot
from leveret.trainer.world import World


@pytest.fixture
def optimizer():
    torch.manual_seed(0)
    made = AdamW(nn.Linear(40, 30), TrainingConfig(), dtype=torch.float32)
    made.exp_avg.normal_()
    return made


def make_checkpoints(folder, keep=2):
    return Checkpoints(folder, identity={"seed": 1}, keep=keep, console=Console(quiet=True))


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing begins when `go` is set."""
    go, write = threading.Event(), Checkpoints.write

    def wait_then_write(self, snapshot):
        assert go.wait(10)
        return write(self, snapshot)

    monkeypatch.setattr(Checkpoints, "write", wait_then_write)
    return go


def test_the_files_are_those_of_a_save_in_the_foreground(tmp_path, optimizer):
    for name, enabled in (("at once", False), ("beside", True)):
        writer = BackgroundWriter(enabled=enabled)
        for step in (1, 2, 3):  # the second and third use the buffers of the first again
            writer.write(make_checkpoints(tmp_path / name), Snapshot.of(optimizer, step, {"losses": [0.1]}))
        writer.wait()
    assert hash_tree(tmp_path / "at once") == hash_tree(tmp_path / "beside")
    assert len(make_checkpoints(tmp_path / "beside").saved()) == 2


def test_what_is_saved_is_the_state_of_the_moment_and_not_of_the_writing(tmp_path, optimizer, slow_disk):
    writer, checkpoints = BackgroundWriter(enabled=True), make_checkpoints(tmp_path / "c")
    before = optimizer.masters.clone()
    writer.write(checkpoints, Snapshot.of(optimizer, 1))
    optimizer.masters.add_(1.0)
    writer.check()  # does not wait: the disk has not even begun
    assert not checkpoints.saved()
    slow_disk.set()
    writer.wait()
    checkpoints.resume(optimizer)
    assert torch.equal(optimizer.masters, before)


def test_only_one_save_is_under_way(tmp_path, optimizer, slow_disk):
    writer, checkpoints = BackgroundWriter(enabled=True), make_checkpoints(tmp_path / "c")
    writer.write(checkpoints, Snapshot.of(optimizer, 1))
    second = threading.Thread(target=writer.write, args=(checkpoints, Snapshot.of(optimizer, 2)))
    second.start()
    second.join(0.1)
    assert second.is_alive(), "the second save began before the first was done"
    slow_disk.set()
    second.join(10)
    writer.wait()
    assert [path.name for path in checkpoints.saved()] == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("ask", ["check", "wait", "write"])
def test_a_full_disk_is_told_at_the_next_step_and_only_once(tmp_path, optimizer, monkeypatch, ask):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    writer, checkpoints = BackgroundWriter(enabled=True), make_checkpoints(tmp_path / "c")
    writer.write(checkpoints, Snapshot.of(optimizer, 1))
    writer.wait()
    monkeypatch.setattr("leveret.trainer.checkpoint.save_file", full)
    writer.write(checkpoints, Snapshot.of(optimizer, 2))
    writer._thread.join()
    with pytest.raises(CheckpointError, match=r"cannot save checkpoint .*No space left"):
        writer.write(checkpoints, Snapshot.of(optimizer, 3)) if ask == "write" else getattr(writer, ask)()
    writer.wait()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-00000001"]


def test_a_process_that_writes_nothing_copies_nothing(tmp_path, optimizer):
    world = World(torch.device("cpu"))
    world.rank = 1  # each process of ddp holds the whole state, and a copy takes as much again
    checkpoints = Checkpoints(tmp_path, identity={"seed": 1}, keep=2, console=Console(quiet=True), world=world)
    writer = BackgroundWriter(enabled=True)
    writer.write(checkpoints, Snapshot.of(optimizer, 1))
    writer.wait()
    assert not writer._host and not checkpoints.saved()
