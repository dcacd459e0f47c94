"""A rehearsal runs the whole recipe small, in a folder of its own, from the start each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from leveret.console import Console
from leveret.errors import ConfigError
from leveret.pipeline.config import RehearseConfig
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


def test_a_rehearsal_removes_nothing_that_is_not_its_own(workshop: Path, quiet: Console) -> None:
    precious = workshop / "runs/tale-rehearsal/thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.touch()
    with pytest.raises(ConfigError, match="something else is there"):
        run(RehearseConfig(recipe=Path("tale.yaml"), isolate=False), quiet)
    assert precious.exists()
