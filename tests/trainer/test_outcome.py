"""The end of a stage: the model appears whole or not at all, and is recognised by what it was made of."""

import pytest
import torch
from torch import nn

from leveret.console import Console
from leveret.errors import TrainingError
from leveret.tokenizer.train import train_byte_bpe
from leveret.trainer.adamw import AdamW
from leveret.trainer.checkpoint import Checkpoints
from leveret.trainer.config import TrainingConfig
from leveret.trainer.outcome import finished_figures, model_fingerprint, publish

QUIET = Console(quiet=True)


@pytest.fixture
def save(tmp_path, new_model):
    tokenizer = train_byte_bpe(["hello"], vocab_size=270, special_tokens=["<eos>"], eos_token="<eos>")

    def run(identity, seed=0, **keeps):
        checkpoints = Checkpoints(tmp_path / "checkpoints", identity=identity, keep=1, console=QUIET)
        checkpoints.folder.mkdir(exist_ok=True)
        return publish(new_model(seed), tokenizer, tmp_path, checkpoints=checkpoints, figures={"loss": 1.5}, **keeps)

    return run


def test_a_finished_run_is_known_by_its_identity(tmp_path, save):
    assert finished_figures(tmp_path, {"seed": 1}, QUIET) is None
    save({"seed": 1})
    assert not (tmp_path / "checkpoints").exists()
    assert finished_figures(tmp_path, {"seed": 1}, QUIET) == {"loss": 1.5}
    assert finished_figures(tmp_path, {"seed": 2}, QUIET) is None


@pytest.mark.parametrize(("kept", "left"), [(False, []), (True, ["step-00000002"])])
def test_what_a_run_that_was_killed_at_its_very_end_left_behind_is_cleared(tmp_path, save, monkeypatch, kept, left):
    """Between the note that all is done and the end of deleting: the next call finishes that too, for this run only."""
    optimizer = AdamW(nn.Linear(4, 4), TrainingConfig(), dtype=torch.float32)

    def two(identity):
        checkpoints = Checkpoints(tmp_path / "checkpoints", identity=identity, keep=2, console=QUIET)
        for step in (1, 2):
            checkpoints.save(step, optimizer)

    two({"seed": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "clear", lambda *_, **__: None)  # it did not come to that
        save({"seed": 1}, keep_final_checkpoint=kept)
    (tmp_path / "checkpoints/step-00000001/manifest.json").unlink()  # or only half way
    assert finished_figures(tmp_path, {"seed": 1}, QUIET) == {"loss": 1.5}
    assert [folder.name for folder in (tmp_path / "checkpoints").glob("step-*")] == left

    two({"seed": 2})  # a run with other settings was begun in the same place
    assert finished_figures(tmp_path, {"seed": 1}, QUIET) == {"loss": 1.5}
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 2


@pytest.mark.parametrize("keep", ["keep_final_checkpoint", "keep_best"])
def test_a_checkpoint_asked_for_when_the_run_is_done_is_told_of(tmp_path, save, capsys, keep):
    asked = TrainingConfig.model_validate({keep: True, "evaluate_every_steps": 1})
    save({"seed": 1})
    assert finished_figures(tmp_path, {"seed": 1}, Console(), training=TrainingConfig()) == {"loss": 1.5}
    assert capsys.readouterr().err == ""
    assert finished_figures(tmp_path, {"seed": 1}, Console(), training=asked) == {"loss": 1.5}
    said = " ".join(capsys.readouterr().err.split())
    assert f"{keep} can do nothing now" in said and "outcome.json" in said
    save({"seed": 1}, **{keep: True})
    (tmp_path / "checkpoints/best/step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000002").mkdir()
    assert finished_figures(tmp_path, {"seed": 1}, Console(), training=asked) == {"loss": 1.5}
    assert capsys.readouterr().err == ""


def test_a_note_without_its_model_or_a_broken_note_counts_for_nothing(tmp_path, save):
    save({"seed": 1})
    for broken in ("{", "[]", '{"identity": {"seed": 1}}', '{"identity": {"seed": 1}, "figures": 3}'):
        (tmp_path / "outcome.json").write_text(broken)
        assert finished_figures(tmp_path, {"seed": 1}, QUIET) is None
    save({"seed": 1})
    (tmp_path / "model" / "config.json").unlink()
    assert finished_figures(tmp_path, {"seed": 1}, QUIET) is None


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_run_whose_model_lost_a_file_is_not_finished(tmp_path, save, capsys, name):
    (save({"seed": 1}) / name).unlink()
    assert finished_figures(tmp_path, {"seed": 1}, Console()) is None
    assert f"model/{name} is gone; training anew" in capsys.readouterr().err


def test_a_full_disk_keeps_the_checkpoints_and_the_model_that_was_there(tmp_path, save, small_files_only):
    folder = save({"seed": 1})
    before = model_fingerprint(folder)
    with small_files_only(4_000), pytest.raises(TrainingError, match=r"cannot save the model .* MB free"):
        save({"seed": 2}, seed=2)
    assert (tmp_path / "checkpoints").is_dir()
    assert model_fingerprint(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model", "outcome.json"]


def test_a_model_s_fingerprint_is_of_its_weights_and_not_of_its_card(save):
    folder = save({"seed": 1})
    before = model_fingerprint(folder)
    (folder / "README.md").write_text("# A card, written by a later stage")
    assert model_fingerprint(folder) == before
    assert model_fingerprint(save({"seed": 1}, seed=3)) != before


def test_a_model_in_the_older_form_is_known_by_its_weights_too(tmp_path, new_model):
    folder = tmp_path / "older"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"of something else")
    found = set()
    for seed in (0, 1):
        torch.save(new_model(seed).state_dict(), folder / "pytorch_model.bin")
        found.add(model_fingerprint(folder))
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    assert len(found | {model_fingerprint(folder)}) == 3
