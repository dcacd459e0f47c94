"""The command line: every way to set a key, help from the models, errors as messages with their exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leveret.cli.main import main
from leveret.version import VERSION

Capture = pytest.CaptureFixture[str]


def toy(capsys: Capture, *words: str) -> dict[str, Any]:
    """The config that `leveret toy WORDS` runs with."""
    code = main(["toy", *words])
    out, err = capsys.readouterr()
    assert code == 0, err
    config: dict[str, Any] = json.loads(out)
    return config


def refused(capsys: Capture, *words: str) -> str:
    """The message of a command line that is refused as wrong."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


@pytest.mark.parametrize(
    "words",
    [
        ["m", "training.max_steps=5", "fast=true", "size=large"],
        ["training.max-steps=5", "fast=true", "size=large", "model=m"],
        ["--training.max_steps", "5", "--fast", "--size", "large", "m"],
        ["m", "--training.max-steps=5", "--fast", "--size=large"],
        ["base.yaml", "m"],
        ["base.yaml", "--model", "m", "--training.max-steps", "5"],
    ],
)
def test_words_options_and_files_say_the_same(capsys: Capture, words: list[str]) -> None:
    Path("base.yaml").write_text("fast: true\nsize: large\ntraining:\n  max_steps: 5\n")
    config = toy(capsys, *words)
    assert (config["model"], config["fast"], config["size"]) == ("m", True, "large")
    assert config["training"] == {"max_steps": 5, "warmup": None, "packed": True}


def test_options_win_over_words_and_words_over_the_file(capsys: Capture) -> None:
    Path("base.yaml").write_text("model: m\ntraining: {max_steps: 1, warmup: 7}\n")
    assert toy(capsys, "base.yaml")["training"]["max_steps"] == 1
    assert toy(capsys, "base.yaml", "training.max_steps=2")["training"] == {
        "max_steps": 2, "warmup": 7, "packed": True,
    }  # fmt: skip
    words = ("base.yaml", "training.max_steps=2", "--training.max-steps", "3", "training.warmup=null")
    assert toy(capsys, *words)["training"] == {"max_steps": 3, "warmup": None, "packed": True}


def test_switches_have_a_no(capsys: Capture) -> None:
    assert toy(capsys, "m", "fast=true", "--no-fast", "--training.no-packed")["fast"] is False
    assert toy(capsys, "m", "--training.no-packed")["training"]["packed"] is False


def test_lists_are_given_by_repetition_by_yaml_or_as_the_last_arguments(capsys: Capture) -> None:
    assert toy(capsys, "m", "--rates", "1e-3", "--rates", "2")["rates"] == [1e-3, 2.0]
    assert toy(capsys, "m", "--rates", "[1, 2]")["rates"] == [1.0, 2.0]
    assert toy(capsys, "m", "rates=[1, 2]")["rates"] == [1.0, 2.0]
    assert toy(capsys, "m", "rates=1")["rates"] == [1.0]
    assert toy(capsys, "m", "prompts=12")["prompts"] == ["12"]
    assert toy(capsys, "m", "--sources", "{path: a}", "--sources", "{path: b}")["sources"] == [
        {"path": "a"}, {"path": "b"},
    ]  # fmt: skip
    assert toy(capsys, "m", "hello there", "x=1", "12", "true")["prompts"] == ["hello there", "x=1", "12", "true"]


def test_text_is_not_read_as_yaml(capsys: Capture) -> None:
    assert toy(capsys, "12")["model"] == "12"
    assert toy(capsys, "--model", "[a]: b")["model"] == "[a]: b"
    assert toy(capsys, "model=true")["model"] == "true"
    assert toy(capsys, "m", "output=null")["output"] is None


def test_mistakes_are_named_with_suggestions(capsys: Capture) -> None:
    assert "error: leveret toy: model: must be given" in refused(capsys, "toy")
    assert "hint: leveret toy --help explains every key" in refused(capsys, "toy")
    assert "did you mean training.max_steps?" in refused(capsys, "toy", "m", "training.max_stes=1")
    assert "should be less than or equal to 1000, not 1001" in refused(capsys, "toy", "m", "training.max_steps=1001")
    assert "there is no command 'tyo'; did you mean toy?" in refused(capsys, "tyo")
    assert "--fast" in refused(capsys, "toy", "m", "--fats")
    assert "there is no file base.yaml" in refused(capsys, "toy", "base.yaml")
    assert "leveret inspect has no key 'pat'; did you mean path?" in refused(capsys, "inspect", "a", "pat=b")
    assert "leveret inspect cannot place 'b': it takes path, and key=value" in refused(capsys, "inspect", "a", "b")


def test_a_mistyped_key_is_not_taken_for_one_of_many_paths(capsys: Capture) -> None:
    assert "no key 'max_byte'; did you mean max_bytes?" in refused(capsys, "prepare", "max_byte=5", "output=o")
    assert "no key 'methd'; did you mean method?" in refused(capsys, "merge", "a", "b", "methd=linear", "output=o")
    assert "no key 'outptu'; did you mean output?" in refused(capsys, "certify", "a", "b", "outptu=o")
    assert "no key 'modle'; did you mean model?" in refused(capsys, "finetune", "modle=a", "data=[b]", "output=o")
    assert "did you mean training.max_steps?" in refused(capsys, "pretrain", "a", "training.max_stes=5")
    Path("max_byte=5").mkdir()
    assert main(["prepare", "max_byte=5", "output=o", "--dry-run"]) == 0
    assert "- max_byte=5" in capsys.readouterr().out


def test_a_dry_run_prints_what_would_run_and_reads_back_the_same(capsys: Capture) -> None:
    assert main(["toy", "m", "hello", "--output", "o", "--rates", "1e-5", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    Path("printed.yaml").write_text(printed)
    assert main(["toy", "printed.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out == printed
    assert "rates:\n- 1.0e-05\n" in printed


def test_what_was_written_is_said_at_the_end(capsys: Capture) -> None:
    main(["toy", "m", "--output", "runs/x"])
    assert capsys.readouterr().err == "runs/x (steps 10)\n"


def test_help_lists_every_key_with_type_range_default_and_docstring(capsys: Capture) -> None:
    assert main(["toy", "--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    for expected in (
        "Usage: leveret toy [BASE.yaml] MODEL [PROMPTS...] [KEY=VALUE]... [OPTIONS]",
        "Play. Plays with every sort of key.",
        "MODEL The model to play with. [required]",
        "PROMPTS What to say.",
        "--size small|large [default: small]",
        "--fast / --no-fast Whether to hurry. [default: false]",
        "--rates NUMBER...",
        "--sources YAML...",
        "training: The training:",
        "--training.max-steps INT Optimizer steps. [> 0; <= 1000; default: 10]",
        "--dry-run",
    ):
        assert expected in page, page


def test_the_first_page_lists_all_commands(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert "pretrain   Train a model" in page and "Exit codes: 0 done" in page
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "gbk"])
def test_a_terminal_that_lacks_characters_shows_question_marks(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "🐢.json").write_text("{}")
    command = [sys.executable, "-m", "leveret", "inspect", str(tmp_path / "🐢.json")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    shown = (done.stdout + done.stderr).decode(encoding)
    assert "?.json" in shown and "Traceback" not in shown


def test_the_version_is_printed(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"leveret {VERSION}\n"


def test_errors_for_people_show_no_traceback_and_keep_their_exit_code(capsys: Capture) -> None:
    assert main(["toy", "uncertain"]) == 5
    assert capsys.readouterr().err == "error: logits differ by 0.3\nhint: look at layer 2\n"


def test_our_own_bugs_show_a_traceback_and_exit_70(capsys: Capture) -> None:
    assert main(["toy", "bug"]) == 70
    shown = capsys.readouterr().err
    assert shown.startswith("error: this is a bug in leveret, not a mistake of yours: ZeroDivisionError: ours")
    assert "Traceback (most recent call last)" in shown


def test_an_interrupt_exits_130(capsys: Capture) -> None:
    assert main(["toy", "interrupt"]) == 130
    assert "Traceback" not in capsys.readouterr().err
