"""The journal: decisions survive, belong to one run, and say which checkpoints are still good."""

import json

import pytest

from leveret.errors import CheckpointError
from leveret.trainer.journal import Decision, Journal
from leveret.trainer.snapshot import Manifest

FIRST = Decision(step=7, first_skipped=6, reason="spike", facts={"loss": 9.5, "typical": 2.5})
SECOND = Decision(step=3, first_skipped=3, reason="non-finite", facts={})


def manifest(step, decisions):
    return Manifest(
        step=step, updates=step, identity={}, layout={}, threads=1, files={}, progress={"decisions": decisions}
    )


def test_decisions_are_there_again_in_the_next_process(tmp_path):
    journal = Journal(tmp_path, {"seed": 1})
    journal.add(FIRST)
    journal.add(SECOND)
    again = Journal(tmp_path, {"seed": 1})
    assert again.decisions == [FIRST, SECOND]
    assert again.skipped == {3, 6, 7}
    assert [again.reason_to_skip(step) for step in (3, 5, 6, 7, 8)] == ["non-finite", None, "spike", "spike", None]


def test_the_file_counts_steps_from_one_as_the_metrics_do(tmp_path):
    Journal(tmp_path, {}).add(FIRST)
    line = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[1])
    assert line == {"step": 8, "skip": [7, 8], "reason": "spike", "loss": 9.5, "typical": 2.5}


def test_the_journal_of_another_run_is_not_read(tmp_path):
    Journal(tmp_path, {"seed": 1}).add(FIRST)
    other = Journal(tmp_path, {"seed": 2})
    assert len(other) == 0
    other.add(SECOND)
    assert Journal(tmp_path, {"seed": 2}).decisions == [SECOND]


def test_a_checkpoint_that_made_a_step_which_is_skipped_later_is_no_longer_good(tmp_path):
    journal = Journal(tmp_path, {})
    assert journal.accepts(manifest(step=8, decisions=0))
    journal.add(FIRST)
    assert journal.accepts(manifest(step=6, decisions=0))
    assert not journal.accepts(manifest(step=7, decisions=0))
    assert journal.accepts(manifest(step=9, decisions=1))
    journal.add(SECOND)
    assert not journal.accepts(manifest(step=9, decisions=1))
    assert journal.accepts(manifest(step=3, decisions=0))


def test_a_damaged_journal_is_an_error_and_not_an_empty_one(tmp_path):
    Journal(tmp_path, {}).add(FIRST)
    (tmp_path / "journal.jsonl").write_text('{"run": "x"}\n{"st')
    with pytest.raises(CheckpointError, match=r"journal.jsonl is damaged"):
        Journal(tmp_path, {})


def test_a_full_disk_is_a_clear_error_and_nothing_is_decided(tmp_path, monkeypatch):
    journal = Journal(tmp_path, {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leveret.trainer.journal.atomic_write", full)
    with pytest.raises(CheckpointError, match="No space left"):
        journal.add(FIRST)
    assert len(journal) == 0
