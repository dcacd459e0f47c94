"""`leveret validate` prints every mistake of every file and runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from leveret.commands import COMMANDS
from leveret.console import Console
from leveret.errors import ConfigError
from leveret.pipeline.config import ValidateConfig
from leveret.pipeline.validate import run


@pytest.fixture(autouse=True)
def only_the_fakes(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(COMMANDS):
        if name not in ("write", "join", "ask"):
            monkeypatch.delitem(COMMANDS, name)


def test_a_good_recipe_is_fine_and_not_run(
    workshop: Path, calls: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run(ValidateConfig(files=(Path("tale.yaml"),)), Console())
    assert "tale.yaml: fine (a recipe of 3 stages: write, second, join)" in capsys.readouterr().out
    assert calls() == []


def test_a_config_is_read_as_the_command_it_fits_best(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.yaml").write_text("output: x\ntext: a\n")
    run(ValidateConfig(files=(Path("one.yaml"),)), Console())
    assert "one.yaml: fine (a config of `write`)" in capsys.readouterr().out


def test_mistakes_of_all_files_come_together(workshop: Path, quiet: Console) -> None:
    Path("one.yaml").write_text("output: x\ntexd: a\n")
    Path("two.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError) as caught:
        run(ValidateConfig(files=(Path("one.yaml"), Path("two.yaml"), Path("tall.yaml"))), quiet)
    report = str(caught.value)
    assert "one.yaml (read as a config of `write`)" in report
    assert "texd: there is no such key; did you mean text?" in report
    assert "two.yaml:2:" in report
    assert "there is no file tall.yaml\nhint: did you mean tale.yaml?" in report


def test_the_command_can_be_said(workshop: Path, quiet: Console) -> None:
    Path("one.yaml").write_text("output: x\ntext: a\n")
    with pytest.raises(ConfigError, match="parts: must be given"):
        run(ValidateConfig(files=(Path("one.yaml"),), command="join"), quiet)
    with pytest.raises(ConfigError, match="did you mean join"):
        run(ValidateConfig(files=(Path("one.yaml"),), command="jion"), quiet)
