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


QUANTIZED = """
stages:
  - quantize: {model: base}
  - finetune: {model: "@quantize", data: [chats.jsonl]}
  - name: merged
    finetune: {model: "@quantize", data: [chats.jsonl], adapter: {merge: true}}
  - name: beside
    finetune: {model: "@quantize", data: [chats.jsonl], adapter: {}}
  - name: more
    pretrain: {init_from: there, documents: [text.txt]}
  - name: again
    quantize: {model: "@beside/model"}
  - export: {model: "@quantize"}
  - name: directory
    export: {model: "@quantize", to: directory}
  - name: of_export
    finetune: {model: "@directory", data: [chats.jsonl]}
  - name: of_other
    export: {model: base, to: directory}
  - name: whole
    finetune: {model: "@of_other", data: [chats.jsonl]}
"""


def test_a_quantized_model_is_refused_where_a_stage_needs_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: Console
) -> None:
    monkeypatch.undo()  # the real commands
    monkeypatch.chdir(tmp_path)
    for folder, values in (("there", '{"quantization_config": {"bits": 4}}'), ("base", "{}")):
        Path(folder).mkdir()
        Path(folder, "config.json").write_text(values)
    stale = Path("runs/r/beside/model")  # of an earlier form of the recipe
    stale.mkdir(parents=True)
    (stale / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    Path("r.yaml").write_text(QUANTIZED)
    with pytest.raises(ConfigError) as caught:
        run(ValidateConfig(files=(Path("r.yaml"),)), quiet)
    found = [line.strip().partition(" is quantized")[0] for line in str(caught.value).splitlines()]
    assert found == [
        "r.yaml has 5 mistakes:", "stage finetune: model: runs/r/quantize", "stage merged: model: runs/r/quantize",
        "stage more: init_from: there", "stage export: model: runs/r/quantize",
        "stage of_export: model: runs/r/directory",
    ]  # fmt: skip
    Path("one.yaml").write_text("model: there\noutput: x\ndata: [chats.jsonl]\n")
    with pytest.raises(ConfigError, match=r"one\.yaml .*: model: there is quantized; only an adapter"):
        run(ValidateConfig(files=(Path("one.yaml"),)), quiet)
    Path("one.yaml").write_text("model: base\noutput: x\ndata: [chats.jsonl]\n")
    run(ValidateConfig(files=(Path("one.yaml"),)), quiet)
