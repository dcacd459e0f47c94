"""The verb, end to end on a tiny random model: what it writes, repeats and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from leveret.config import parse_config
from leveret.console import Console
from leveret.engine.text import TextModel
from leveret.errors import ConfigError, DataError, ToolError
from leveret.evaluate.config import EvaluateConfig
from leveret.evaluate.run import run
from leveret.model.lora import LoraSettings
from leveret.model.lora_targets import add_lora
from leveret.tools.requests import read_requests
from leveret.weights.adapter import save_adapter
from leveret.weights.load import load_model
from leveret.weights.save import save_model


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "held_out.jsonl"
    file.write_text('{"text": "明天早上 🐢"}\n{"text": "Call Alice"}\n', encoding="utf-8")
    return file


def config_for(model: Path, **fields: object) -> EvaluateConfig:
    return parse_config(EvaluateConfig, {"model": str(model), **fields}, source="the test")


def test_results_failures_and_protocol_are_on_record(
    model_dir: Path, requests_file: Path, text_file: Path, tmp_path: Path
) -> None:
    config = config_for(model_dir, output=tmp_path / "out", tools=[requests_file], text=[text_file])
    result = run(config, Console(quiet=True))
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    entry = report["tools"]["mine"]
    assert entry["overall"]["requests"] == 4
    assert {kind: tally["requests"] for kind, tally in entry["kinds"].items()} == {"irrelevant": 1, "single": 3}
    assert entry["languages"]["Chinese"]["requests"] == 1 and entry["groups"]["small talk"]["requests"] == 1
    assert "unparsable" not in entry["overall"]["errors"]
    assert len(entry["expected_calls_that_do_not_fit"]) == 1
    assert report["text"]["held_out"]["bytes"] == len("明天早上 🐢Call Alice".encode())
    assert report["protocol"]["constrained"] is True
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert len(failures) == 4 - entry["overall"]["exact"]
    assert {"query", "expected", "predicted", "error"} <= failures[0].keys()
    assert result.summary["mine: unparsable"] == 0
    assert result.summary["held_out: bits per byte"] == report["text"]["held_out"]["bits_per_byte"]


def test_the_recorded_answers_are_those_of_call_tools(model_dir: Path, requests_file: Path, tmp_path: Path) -> None:
    run(config_for(model_dir, output=tmp_path / "out", tools=[requests_file]), Console(quiet=True))
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    model = TextModel.load(model_dir)
    queries = [request.query for request in read_requests(requests_file)]
    answers = dict(zip(queries, model.call_tools(queries), strict=True))
    assert failures
    for failure in failures:
        calls = answers[failure["query"]]
        assert calls is not None
        assert failure["predicted"] == [{"name": call.name, "arguments": call.arguments} for call in calls]


def test_unchanged_inputs_are_not_measured_again(
    model_dir: Path, requests_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(model_dir, output=tmp_path / "out", tools=[requests_file])
    first = run(config, Console(quiet=True))
    written = (tmp_path / "out" / "evaluation.json").stat().st_mtime_ns
    again = run(config, Console())
    assert again.summary == first.summary
    assert (tmp_path / "out" / "evaluation.json").stat().st_mtime_ns == written
    shown = capsys.readouterr()
    assert "nothing has changed" in shown.err and "Tool calls: mine" in shown.out
    requests_file.write_text(requests_file.read_text() + '{"query": "one more", "calls": []}\n')
    run(config, Console(quiet=True))
    assert (tmp_path / "out" / "evaluation.json").stat().st_mtime_ns > written


def test_a_request_longer_than_the_context_fails_alone_and_says_why(model_dir: Path, tmp_path: Path) -> None:
    requests = [{"query": "Set a timer " * 400, "calls": []}, {"query": "How are you?", "calls": []}]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    run(config_for(model_dir, output=tmp_path / "out", tools=[file]), Console(quiet=True))
    overall = json.loads((tmp_path / "out/evaluation.json").read_text())["tools"]["mine"]["overall"]
    first = json.loads((tmp_path / "out/failures.jsonl").read_text().splitlines()[0])
    assert overall["requests"] == 2 and overall["errors"]["not_asked"] == 1
    assert first["query"] == requests[0]["query"] and "256" in first["reason"]


def test_what_a_server_answers_is_measured_every_time(
    model_dir: Path, requests_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loaded = TextModel.load(model_dir), []
    monkeypatch.setattr(TextModel, "load", lambda *_, backend: loaded.append(backend) or model)
    url = "http://127.0.0.1:8000/v1"
    config = config_for(model_dir, output=tmp_path, tools=[requests_file], backend=url, constrained=False)
    for _ in range(2):
        run(config, Console(quiet=True))
    assert loaded == [url, url]


@pytest.mark.parametrize("name", ["evaluation.json", "failures.jsonl"])
def test_a_damaged_record_is_measured_again(model_dir: Path, requests_file: Path, tmp_path: Path, name: str) -> None:
    config = config_for(model_dir, output=tmp_path, tools=[requests_file])
    first = run(config, Console(quiet=True))
    whole = (tmp_path / "failures.jsonl").read_text()
    for damage in ("[]", "null", "not json"):
        (tmp_path / name).write_text(damage)
        assert run(config, Console(quiet=True)).summary == first.summary
        assert (tmp_path / "failures.jsonl").read_text() == whole


def test_a_result_in_the_folder_of_the_model_is_no_change_of_it(
    base_dir: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(base_dir, model)
    for output in (model, model / "evaluation"):
        run(config_for(model, output=output, text=[text_file]), Console(quiet=True))
        run(config_for(model, output=output, text=[text_file]), Console())
        assert "nothing has changed" in capsys.readouterr().err


def test_another_model_under_an_adapter_is_measured(base_dir: Path, text_file: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(base_dir, base)
    model = load_model(base)
    add_lora(model, LoraSettings(rank=2, alpha=4.0), "all-linear", seed=0)
    save_adapter(model, adapter, base=str(base))
    config = config_for(adapter, output=tmp_path / "out", text=[text_file])
    first = run(config, Console(quiet=True))
    other = load_model(base)
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    save_model(other, base)
    assert run(config, Console(quiet=True)).summary != first.summary


def test_unconstrained_answers_that_do_not_parse_are_counted(
    model_dir: Path, requests_file: Path, tmp_path: Path
) -> None:
    config = config_for(model_dir, output=tmp_path / "out", tools=[requests_file], constrained=False, max_requests=2)
    result = run(config, Console(quiet=True))
    assert result.summary["mine: unparsable"] == 2
    failures = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert len(failures) == 2 and all(json.loads(line)["predicted"] is None for line in failures)


def test_a_request_that_is_too_long_is_a_failure_of_its_own_kind_not_an_end(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"query": "very " * 2000, "calls": []}) + "\n")
    result = run(config_for(model_dir, tools=[file], output=tmp_path / "out"), Console())
    assert result.summary["long: unparsable"] == 0 and result.summary["long: exact"] == 0
    [entry] = json.loads((tmp_path / "out" / "evaluation.json").read_text())["tools"].values()
    assert entry["overall"]["errors"] == {"not_asked": 1}
    [failure] = map(json.loads, (tmp_path / "out" / "failures.jsonl").read_text().splitlines())
    assert failure["error"] == "not_asked" and "room for" in failure["reason"] and "raw" not in failure
    told = capsys.readouterr()
    assert "1 request could not be asked" in told.err and "(not asked)" in told.out + told.err


def test_expected_values_that_are_no_piece_of_the_request_are_told(model_dir: Path, tmp_path: Path) -> None:
    """A parameter that is copied from the request cannot be answered with `Ann` to `call ann`."""
    file = tmp_path / "mine.jsonl"
    calls = [[{"name": "call_contact", "arguments": {"name": name}}] for name in ("Ann", "Zoe\u0308", "Bob")]
    queries = ("call ann", "call Zo\xeb", "call Bob")
    file.write_text("\n".join(json.dumps({"query": q, "calls": c}) for q, c in zip(queries, calls, strict=True)))
    for constrained in (True, False):
        run(config_for(model_dir, tools=[file], output=tmp_path / "out", constrained=constrained), Console(quiet=True))
        report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        found = report["tools"]["mine"]["expected_calls_that_do_not_fit"]
        assert found == ["'call ann': call_contact: name is no piece of the request: 'Ann'"] * constrained


def test_each_request_file_is_a_group(model_dir: Path, requests_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mine.jsonl"
    other.parent.mkdir()
    other.write_text(requests_file.read_text())
    result = run(config_for(model_dir, tools=[requests_file, other], max_requests=1), Console(quiet=True))
    assert f"{requests_file}: exact" in result.summary and f"{other}: exact" in result.summary


def test_text_is_cut_at_whole_documents(model_dir: Path, text_file: Path) -> None:
    result = run(config_for(model_dir, text=[text_file], max_text_bytes=20), Console(quiet=True))
    whole = run(config_for(model_dir, text=[text_file]), Console(quiet=True))
    assert result.summary != whole.summary


def test_a_model_without_tools_is_refused(base_dir: Path, requests_file: Path) -> None:
    with pytest.raises(ToolError, match=r"no tools\.json"):
        run(config_for(base_dir, tools=[requests_file]), Console(quiet=True))


def test_missing_and_doubled_files_are_refused(model_dir: Path, tmp_path: Path, requests_file: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        run(config_for(model_dir, tools=[tmp_path / "none.jsonl"]), Console(quiet=True))
    with pytest.raises(DataError, match="is a folder; name the files in it"):
        run(config_for(model_dir, text=[tmp_path]), Console(quiet=True))
    with pytest.raises(ConfigError, match="nothing to measure"):
        config_for(model_dir)
    with pytest.raises(ConfigError, match="named twice"):
        config_for(model_dir, tools=[requests_file, requests_file])
