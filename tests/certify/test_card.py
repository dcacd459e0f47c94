"""The model card: true to the records, bilingual, readable by the hub, and never over a person's own words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from leveret.certify.card_facts import flat, number
from leveret.certify.card_pieces import sparkline, table
from leveret.certify.config import CertifyConfig
from leveret.certify.references import short_form
from leveret.certify.run import run
from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import CertificateError, DataError
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run as quantize
from leveret.tools.schema import Parameter, Tool, ToolSet

MakeForm = Callable[..., Path]
QUIET = Console(quiet=True)


def certify(*forms: Path, **changes: object) -> str:
    """Run and return the card."""
    data = {"forms": [str(form) for form in forms], "card": forms[0], "transformers": "off", "greedy_tokens": 2}
    run(parse_config(CertifyConfig, data | changes, source="test"), QUIET)
    return (Path(str((data | changes)["card"])) / "README.md").read_text("utf-8")


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """The folder of a pretraining stage in a run, with the pipeline's record beside it."""
    folder = tmp_path / "run" / "pretrain"
    folder.mkdir(parents=True)
    lines = [{"step": step, "loss": 9 - step / 20, "validation_loss": 8.5 - step / 25} for step in range(1, 101)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tally = {"requests": 1500, "exact_share": 0.9612, "exact_interval_95": [0.9503, 0.9698]}
    tools = {"held_out": {"overall": tally | {"errors": {"not_asked": 3}}, "kinds": {"single": tally}}}
    text = {"stories": {"bits_per_byte": 1.23456, "bytes": 5000}}
    content = {"inputs": {"f": "0123abcd"}, "protocol": {}, "tools": tools, "text": text}
    (folder / "evaluation.json").write_text(json.dumps(content))
    record = {
        "command": "pretrain",
        "seconds": 131.4,
        "parts": {"config": {"documents": ["run/prepare/text"], "training": {"learning_rate": 0.0006, "warmup": None}}},
        "summary": {"tokens": 6_553_600, "loss": 4.0},
    }
    (folder.parent / "stages").mkdir()
    (folder.parent / "stages" / "pretrain.json").write_text(json.dumps(record))
    return folder


def test_the_card_says_what_the_records_say(make_form: MakeForm, stage: Path) -> None:
    card = certify(make_form("m"), make_form("b"), sources=[stage], title="Tiny Hare", description="A test animal.")
    for fact in (
        "# Tiny Hare",
        "A test animal.",
        "| layers | 2 |",
        "| training.learning_rate | 0.0006 |",
        "| documents | run/prepare/text |",
        "| tokens | 6,553,600 |",
        "Took 2 min.",
        "pretrain loss over 100 steps: 8.95 █",
        "▁ 4",
        "| held_out: exact tool calls, single | 96.1% of 1,500 (95 %: 95.0% to 97.0%) |",
        "| held_out: answers that do not parse | 0 |",
        "| held_out: requests that the model could not be asked | 3 |",
        "| stories: bits per byte | 1.2346 (5,000 bytes) |",
    ):
        assert fact in card, fact
    assert "warmup" not in card and "0123abcd" not in card and "No evaluation" not in card


def test_a_training_stage_without_a_pipeline_tells_its_own_outcome(make_form: MakeForm, tmp_path: Path) -> None:
    stage = tmp_path / "alone"
    stage.mkdir()
    outcome = {"identity": {"training": {"learning_rate": 0.001}}, "figures": {"steps": 1200}}
    (stage / "outcome.json").write_text(json.dumps(outcome))
    card = certify(make_form("m"), make_form("b"), sources=[stage])
    assert "| training.learning_rate | 0.001 |" in card and "| steps | 1,200 |" in card


def test_the_metadata_is_yaml_that_the_hub_reads(make_form: MakeForm, tmp_path: Path) -> None:
    quantize(QuantizeConfig(model=str(make_form("m")), output=tmp_path / "q", group_size=32), QUIET)
    tool = Tool(name="set_timer", description="Timer", parameters=(Parameter(name="minutes", type="integer"),))
    ToolSet([tool]).save(tmp_path / "q")
    card = certify(tmp_path / "m", tmp_path / "q", card=tmp_path / "q", license="apache-2.0")
    _, header, _ = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "language": ["en", "zh"],
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["leveret", "mistral", "tool-calling", "4-bit", "gptq"],
    }
    assert "calls 1 function: `set_timer`" in card and 'tools="all"' in card and "可调用 1 个函数" in card
    assert "GPTQModel" in card


def test_the_certificate_is_in_the_card_in_both_languages(make_form: MakeForm) -> None:
    card = certify(make_form("m"), make_form("b"))
    assert "gives the same answers within its bounds" in card and "| token ids |" in card
    assert "## 中文说明" in card and "应完全一致 | 通过 |" in card
    assert "No evaluation was recorded" in card and "没有记录任何评测" in card


def test_a_failed_certificate_is_said_loudly_in_the_card(make_form: MakeForm) -> None:
    def perturb(model: object) -> None:
        model.norm.weight[3] += 1

    path = make_form("m")
    with pytest.raises(CertificateError, match=r"module norm"):
        certify(path, make_form("b", change=perturb))
    card = (path / "README.md").read_text("utf-8")
    assert card.count("FAILED") == 1 and "certificate of this model failed" in card and "未通过" in card
    assert "module norm" in card and str(path.parent.parent) not in card, "a published card shows no one's disk"


def test_writing_the_card_again_changes_nothing(make_form: MakeForm) -> None:
    forms = (make_form("m"), make_form("b"))
    assert certify(*forms) == certify(*forms)


def test_a_persons_card_keeps_every_word_and_gets_the_certificate_once(make_form: MakeForm) -> None:
    path, other = make_form("m"), make_form("b")
    (path / "README.md").write_text("# My model\n\nMy own words.\n", encoding="utf-8")
    first = certify(path, other)
    assert first.startswith("# My model\n\nMy own words.\n\n<!-- certificate -->\n## Certificate")
    (path / "README.md").write_text(first + "\nMore words.\n", encoding="utf-8")
    assert certify(path, other) == first + "\nMore words.\n"


def test_a_source_without_facts_is_an_error(make_form: MakeForm, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: there is nothing to tell"):
        certify(make_form("m"), make_form("b"), sources=[tmp_path / "empty"])


def test_small_pieces() -> None:
    assert flat({"a": {"b": 1, "c": None, "d": [], "e": True}, "f": ["x", "y"]}) == {
        "a.b": "1",
        "a.e": "yes",
        "f": "x, y",
    }
    assert [number(value) for value in (1234567, 0.123456, 2.5e-6, 5000.0)] == [
        "1,234,567",
        "0.1235",
        "2.5e-06",
        "5,000",
    ]
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁" and sparkline([1.0, 1.0]) == "▁▁" and len(sparkline([*range(99)])) == 24
    assert short_form("transformers:/home/me/run/finetune/model") == "transformers:finetune/model"
    assert table(("a", "b"), [("x|y", "1\n2")]) == "| a | b |\n|---|---|\n| x\\|y | 1 2 |"
