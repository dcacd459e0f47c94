"""Stages run once: skipped when done, resumed when interrupted, run again when something they depend on changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leveret.console import Console
from leveret.errors import ConfigError, DataError, LeveretError
from leveret.pipeline import dependencies
from leveret.pipeline.config import RunConfig
from leveret.pipeline.execute import Options, execute
from leveret.pipeline.lock import locked
from leveret.pipeline.run import run
from leveret.recipe import load_recipe

Calls = Callable[[], list[str]]


def go(*overrides: str, recipe: str = "tale.yaml", again_from: str | None = None, until: str | None = None) -> None:
    """Run in this process, which is fast; test_isolation.py has the rest."""
    options = Options(again_from=again_from, until=until, isolate=False)
    execute(load_recipe(Path(recipe), overrides), options, Console(quiet=True))


def test_a_second_run_does_nothing(workshop: Path, calls: Calls) -> None:
    go()
    assert (workshop / "runs/tale/join/joined.txt").read_text() == "one 100 7|two 5 7"
    go()
    assert calls() == ["write", "write", "join"]


def test_a_changed_config_runs_its_stage_and_those_that_build_on_it(workshop: Path, calls: Calls) -> None:
    go()
    go("second.text=zwei")
    assert calls() == ["write", "write", "join", "write", "join"]
    assert (workshop / "runs/tale/join/joined.txt").read_text() == "one 100 7|zwei 5 7"


def test_an_old_output_is_set_aside_and_the_reason_named(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go()
    execute(load_recipe(Path("tale.yaml"), ["second.training.steps=6"]), Options(isolate=False), Console())
    assert (workshop / "runs/tale/superseded/second/text.txt").read_text() == "two 5 7"
    shown = capsys.readouterr().err
    assert "second runs again (changed: config (training.steps 5 -> 6)); its old output is in" in shown
    assert "join runs again (changed: stages (second))" in shown


def test_a_changed_input_file_runs_the_stage_again(workshop: Path, calls: Calls) -> None:
    Path("in.txt").write_text("a")
    go("write.source=in.txt", until="write")
    go("write.source=in.txt", until="write")
    Path("in.txt").write_text("b")
    go("write.source=in.txt", until="write")
    assert calls() == ["write", "write"]


def test_an_input_that_was_only_touched_does_not(workshop: Path, calls: Calls) -> None:
    Path("in.txt").write_text("a")
    go("write.source=in.txt", until="write")
    Path("in.txt").unlink()
    Path("in.txt").write_text("a")
    go("write.source=in.txt", until="write")
    assert calls() == ["write"]


def test_changed_code_runs_everything_again_unless_it_may_be_kept(
    workshop: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    go()
    monkeypatch.setattr(dependencies, "code_digest", lambda command: "another")
    keep = Options(isolate=False, keep_after_code_changes=True)
    execute(load_recipe(Path("tale.yaml")), keep, Console(quiet=True))
    assert len(calls()) == 3
    go()
    assert len(calls()) == 6


def test_a_missing_output_is_made_again(workshop: Path, calls: Calls) -> None:
    go()
    (workshop / "runs/tale/join/joined.txt").unlink()
    (workshop / "runs/tale/join").rmdir()
    go()
    assert calls()[3:] == ["join"]


def test_a_stage_whose_output_lost_a_file_is_done_again(workshop: Path, calls: Calls) -> None:
    go()
    for _ in range(2):
        (workshop / "runs/tale/second/text.txt").unlink()
        go()
        assert (workshop / "runs/tale/second/text.txt").read_text() == "two 5 7"
    (workshop / "runs/tale/write/notes.txt").touch()  # of somebody else
    go()
    (workshop / "runs/tale/write/notes.txt").unlink()
    go()
    assert calls() == ["write", "write", "join", "write", "write"]


def test_stages_can_be_done_again_and_left_out(workshop: Path, calls: Calls) -> None:
    go(until="second")
    assert calls() == ["write", "write"]
    go(again_from="second")
    assert calls() == ["write", "write", "write", "join"]
    with pytest.raises(ConfigError, match="has no stage 'secnd'"):
        go(until="secnd")


def test_a_failed_stage_is_resumed_with_its_folder_kept(workshop: Path, calls: Calls) -> None:
    with pytest.raises(DataError, match=r"words.txt:3: no such word"):
        go("second.then=fail")
    record = json.loads((workshop / "runs/tale/stages/second.json").read_text())
    assert record["status"] == "begun"
    (workshop / "runs/tale/second/kept").touch()
    with pytest.raises(DataError):
        go("second.then=fail")
    assert (workshop / "runs/tale/second/kept").exists()
    assert calls() == ["write", "write", "write"]


def test_the_book_says_what_was_done_and_how_long_it_took(workshop: Path) -> None:
    go()
    record = json.loads((workshop / "runs/tale/stages/write.json").read_text())
    assert record["status"] == "done"
    assert record["seconds"] >= 0
    assert record["summary"] == {"words": 1}
    assert record["parts"]["config"]["text"] == "one"


def test_everything_shown_is_in_the_log_with_a_table_of_times(workshop: Path) -> None:
    go()
    go()
    log = (workshop / "runs/tale/log.txt").read_text()
    assert "writing one" in log
    assert "done before" in log
    assert "total" in log


def test_two_processes_do_not_work_in_one_run_folder(workshop: Path, quiet: Console) -> None:
    with locked(workshop / "runs/tale/.lock"), pytest.raises(LeveretError, match="is at work in"):
        run(RunConfig(recipe=Path("tale.yaml"), isolate=False), quiet)
    run(RunConfig(recipe=Path("tale.yaml"), isolate=False), quiet)


def test_a_stage_named_by_its_path_counts_like_a_reference(workshop: Path, calls: Calls) -> None:
    Path("p.yaml").write_text(
        "stages:\n  - write: {text: a}\n  - name: b\n    write: {text: b, source: runs/p/write/text.txt}\n"
        "  - name: c\n    write: {text: c, model: runs/p/b}\n"
    )
    go(recipe="p.yaml")
    go(recipe="p.yaml")
    assert len(calls()) == 3
    go("write.text=x", recipe="p.yaml")
    assert len(calls()) == 6
    assert Path("runs/p/b/text.txt").read_text() == "x 100 0b 100 0"


@pytest.mark.parametrize("form", ["transformers:models/a", "~/models/a", "models/x+models/a", "lora"])
def test_a_model_counts_however_it_is_named(
    workshop: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("HOME", str(workshop))
    for folder in ("models/a", "lora"):
        Path(folder).mkdir(parents=True)
    Path("models/a/config.json").write_text("{}")
    Path("lora/adapter_config.json").write_text('{"base_model_name_or_path": "models/a"}')
    Path("p.yaml").write_text(f"stages:\n  - write: {{text: a, model: '{form}'}}\n")
    go(recipe="p.yaml")
    go(recipe="p.yaml")
    assert len(calls()) == 1
    Path("models/a/model.safetensors").write_text("other weights")
    go(recipe="p.yaml")
    assert len(calls()) == 2


def test_what_a_stage_writes_into_its_input_is_no_change_of_it(workshop: Path, calls: Calls) -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    Path("p.yaml").write_text("stages:\n  - write: {text: a, model: model, output: model/written}\n")
    go(recipe="p.yaml")
    Path("runs/p/inputs.json").write_text("[]")
    go(recipe="p.yaml")
    assert len(calls()) == 1


def test_a_stage_after_the_last_one_cannot_be_done_again(workshop: Path) -> None:
    with pytest.raises(ConfigError, match="'join' comes after 'write'"):
        go(again_from="join", until="write")


def test_python_caches_and_hidden_files_in_an_input_folder_do_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    contents = dependencies.ContentHashes(tmp_path / "memory.json")
    before = contents.of(folder)
    (folder / "__pycache__/a.pyc").write_text("x")
    (folder / ".hidden").write_text("x")
    assert contents.of(folder) == before
    (folder / "b.txt").write_text("a")
    assert contents.of(folder) != before


def test_what_no_stage_writes_must_be_there_before_the_first_one_runs(workshop: Path, calls: Calls) -> None:
    Path("late.yaml").write_text(
        "name: late\nstages:\n"
        "- write: {text: one, source: ~/no-such-file.txt}\n"
        "- {name: second, write: {text: two, source: '@write/text.txt', model: runs/far/gone/model}}\n"
        "- join: {parts: ['@write/text.txt', '@second', runs/late/join/own, runs, runs/late/third, lost.txt]}\n"
        "- {name: third, write: {text: three}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        go(recipe="late.yaml")
    home = Path("~").expanduser()
    assert str(caught.value).splitlines() == [
        "late reads what is not there:",
        f"  stage write: source: there is no {home}/no-such-file.txt, and no earlier stage writes it",
        "  stage second: model: there is no runs/far/gone/model, and no earlier stage writes it",
        "  stage join: parts.4: there is no runs/late/third, and no earlier stage writes it",
        "  stage join: parts.5: there is no lost.txt, and no earlier stage writes it",
    ]
    assert calls() == [] and not Path("runs").exists()
    go("write.source=late.yaml", recipe="late.yaml", until="write")  # asks about no stage behind it
    lost = 'join.parts=["@second/text.txt"]'
    go("write.source=late.yaml", "second.model=hf:org/name", lost, recipe="late.yaml", until="join")
    assert calls() == ["write", "write", "join"]
