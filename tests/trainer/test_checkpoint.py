"""Checkpoints: whole or not there, the newest good one wins, never of another run."""

import json
import shutil

import pytest
import torch
from torch import nn

from leveret.console import Console
from leveret.errors import CheckpointError
from leveret.trainer.adamw import AdamW
from leveret.trainer.checkpoint import Checkpoints
from leveret.trainer.config import TrainingConfig
from leveret.trainer.snapshot import Manifest

IDENTITY = {"config": {"training": {"learning_rate": 0.001}, "seed": 1}, "data": [["a.jsonl", 1.0]]}


def make_optimizer(seed=0):
    torch.manual_seed(seed)
    optimizer = AdamW(nn.Linear(40, 30), TrainingConfig(), dtype=torch.float32)
    optimizer.exp_avg.normal_()
    optimizer.exp_avg_sq.uniform_()
    return optimizer


def make_checkpoints(tmp_path, *, identity=IDENTITY, keep=2, log=None):
    return Checkpoints(tmp_path / "checkpoints", identity=identity, keep=keep, console=Console(quiet=True, log=log))


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    saved, loaded = make_optimizer(0), make_optimizer(1)
    saved.updates = 7
    make_checkpoints(tmp_path).save(7, saved)
    assert make_checkpoints(tmp_path).resume(loaded).step == 7
    assert loaded.updates == 7
    for name, tensor in saved.state().items():
        assert torch.equal(tensor, loaded.state()[name])


def test_who_may_read_new_files_may_read_a_checkpoint(tmp_path):
    saved = make_checkpoints(tmp_path).save(7, make_optimizer(0))
    assert len({file.stat().st_mode for file in saved.iterdir()}) == 1


def test_without_checkpoints_there_is_nothing_to_resume(tmp_path):
    assert make_checkpoints(tmp_path).resume(make_optimizer()) is None


def test_only_the_last_ones_are_kept_and_nothing_else_lies_about(tmp_path):
    checkpoints = make_checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15, 20):
        checkpoints.save(step, make_optimizer())
    assert names(tmp_path) == ["step-00000015", "step-00000020"]


def test_a_folder_of_another_name_is_none_of_the_run_s(tmp_path):
    checkpoints = make_checkpoints(tmp_path, keep=1)
    mine = shutil.copytree(checkpoints.save(1, make_optimizer(0)), tmp_path / "checkpoints" / "step-00000009.mine")
    checkpoints.save(2, make_optimizer(0))
    assert names(tmp_path) == ["step-00000002", mine.name]
    assert checkpoints.resume(make_optimizer(1)).step == 2
    checkpoints.delete_after(1)
    assert names(tmp_path) == [mine.name]


def test_of_the_best_states_only_the_best_is_left_when_the_run_is_done(tmp_path):
    checkpoints, optimizer = make_checkpoints(tmp_path), make_optimizer()
    best = Checkpoints(checkpoints.folder / "best", identity=IDENTITY, keep=2, console=Console(quiet=True))
    for step in (10, 20, 30):
        checkpoints.save(step, optimizer)
        best.save(step, optimizer)
    assert len(best.saved()) == 2  # the older one is there for a roll-back
    checkpoints.clear(keep_newest=True, keep_best=True)
    assert [path.relative_to(checkpoints.folder).as_posix() for path in sorted(checkpoints.folder.rglob("step-*"))] == [
        "best/step-00000030", "step-00000030",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "remove", "manifest", "manifest missing", "updates", "identity"]
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_with_a_warning(tmp_path, damage):
    checkpoints = make_checkpoints(tmp_path, log=tmp_path / "log")
    checkpoints.save(5, make_optimizer(5))
    newest = checkpoints.save(10, make_optimizer(10))
    state, manifest = newest / "state.safetensors", newest / "manifest.json"
    content = bytearray(state.read_bytes())
    content[-100] ^= 1
    match damage:
        case "flip":
            state.write_bytes(content)
        case "truncate":
            state.write_bytes(content[:-50])
        case "remove":
            state.unlink()
        case "manifest":
            manifest.write_text(manifest.read_text()[:40])
        case "manifest missing":
            manifest.unlink()
        case "updates":  # a flipped digit is still JSON
            manifest.write_text(manifest.read_text().replace('"updates": 0', '"updates": 8'))
        case "identity":
            manifest.write_text(manifest.read_text().replace('"seed": 1', '"seed": 3'))
    loaded = make_optimizer(0)
    assert checkpoints.resume(loaded).step == 5
    assert torch.equal(loaded.masters, make_optimizer(5).masters)
    assert "step-00000010" in (tmp_path / "log").read_text()
    checkpoints.keep = 1
    checkpoints.save(8, make_optimizer(8))  # the damaged one does not count as newer than this
    assert [path.name for path in checkpoints.saved()] == ["step-00000008"]


def test_when_all_are_damaged_the_run_is_not_silently_begun_again(tmp_path):
    checkpoints = make_checkpoints(tmp_path)
    (checkpoints.save(5, make_optimizer()) / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the 1 checkpoints.*\n.*rm -r"):
        checkpoints.resume(make_optimizer())


def test_another_config_is_refused_and_every_differing_key_named(tmp_path):
    make_checkpoints(tmp_path).save(5, make_optimizer())
    changed = json.loads(json.dumps(IDENTITY))
    changed["config"]["training"]["learning_rate"] = 0.002
    changed["data"][0][1] = 2.0
    with pytest.raises(CheckpointError) as caught:
        make_checkpoints(tmp_path, identity=changed).resume(make_optimizer())
    assert "config.training.learning_rate: 0.001 -> 0.002" in str(caught.value)
    assert "data.0: ['a.jsonl', 1.0] -> ['a.jsonl', 2.0]" in str(caught.value)
    assert "seed" not in str(caught.value)


def test_a_full_disk_is_a_clear_error_and_the_earlier_checkpoint_survives(tmp_path, monkeypatch):
    checkpoints = make_checkpoints(tmp_path, keep=1)
    checkpoints.save(5, make_optimizer(5))

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leveret.trainer.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot save checkpoint.*MB needed.*MB free.*No space left"):
        checkpoints.save(10, make_optimizer())
    assert names(tmp_path) == ["step-00000005"]
    assert checkpoints.resume(make_optimizer()).step == 5


def test_a_disk_that_fills_up_while_writing_is_the_same_clear_error(tmp_path, small_files_only):
    checkpoints = make_checkpoints(tmp_path)
    checkpoints.save(5, make_optimizer(5))
    with small_files_only(8_000), pytest.raises(CheckpointError, match="cannot save checkpoint"):
        checkpoints.save(10, make_optimizer())
    assert names(tmp_path) == ["step-00000005"]


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_no_visible_half(tmp_path, monkeypatch):
    checkpoints = make_checkpoints(tmp_path, keep=1)
    checkpoints.save(5, make_optimizer())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the kill: nothing is deleted
        checkpoints.save(10, make_optimizer())
    assert [path.name for path in checkpoints.saved()] == ["step-00000010"]
    checkpoints.save(15, make_optimizer())
    assert names(tmp_path) == ["step-00000015"]


def test_another_number_of_threads_is_resumed_with_a_warning(tmp_path, monkeypatch):
    checkpoints = make_checkpoints(tmp_path, log=tmp_path / "log")
    with monkeypatch.context() as then:
        then.setattr(torch, "get_num_threads", lambda: 99)
        checkpoints.save(5, make_optimizer())
    assert checkpoints.resume(make_optimizer()).step == 5
    assert "99 CPU threads" in (tmp_path / "log").read_text()


def test_a_manifest_with_numbers_for_keys_is_read_as_it_was_written(tmp_path):
    progress = {"seen": {10: 1, 9: 2}}
    Manifest(step=1, updates=1, identity={}, layout={}, threads=1, files={}, progress=progress).write(tmp_path)
    assert Manifest.read(tmp_path).progress == {"seen": {"10": 1, "9": 2}}
