"""A rehearsal runs the whole recipe small, in a folder of its own, from the start each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from leveret.console import Console
from leveret.errors import ConfigError, LeveretError
from leveret.pipeline import execute
from leveret.pipeline.config import RehearseConfig
from leveret.pipeline.lock import locked
from leveret.pipeline.rehearse import run


def test_a_rehearsal_shrinks_runs_all_and_starts_anew(
    workshop: Path, calls: Callable[[], list[str]], quiet: Console
) -> None:
    config = RehearseConfig(recipe=Path("tale.yaml"), isolate=False)
    run(config, quiet)
    assert (workshop / "runs/tale-rehearsal/join/joined.txt").read_text() == "one 2 7|two 2 7"
    assert not (workshop / "runs/tale").exists()
    run(config, quiet)
    assert len(calls()) == 6


def test_a_rehearsal_killed_before_its_first_stage_is_begun_anew(
    workshop: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RehearseConfig(recipe=Path("tale.yaml"), isolate=False)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(execute, "parts_of", Mock(side_effect=KeyboardInterrupt))
        run(config, quiet)
    run(config, quiet)


def test_a_rehearsal_at_work_is_not_removed_by_another(workshop: Path, quiet: Console) -> None:
    config = RehearseConfig(recipe=Path("tale.yaml"), isolate=False)
    run(config, quiet)
    output = workshop / "runs/tale-rehearsal"
    with locked(output / ".lock"), pytest.raises(LeveretError, match="is at work in"):
        run(config, quiet)
    assert (output / "join/joined.txt").exists()


def test_a_rehearsal_of_a_run_in_this_folder_is_beside_it(workshop: Path, quiet: Console) -> None:
    run(RehearseConfig(recipe=Path("tale.yaml"), overrides=("output=.",), isolate=False), quiet)
    assert (workshop.with_name(f"{workshop.name}-rehearsal") / "join/joined.txt").exists()


def test_a_rehearsal_removes_nothing_that_is_not_its_own(workshop: Path, quiet: Console) -> None:
    precious = workshop / "runs/tale-rehearsal/thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.touch()
    with pytest.raises(ConfigError, match="something else is there"):
        run(RehearseConfig(recipe=Path("tale.yaml"), isolate=False), quiet)
    assert precious.exists()
