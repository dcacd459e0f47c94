"""Samples left out by the keys that the X-ray and forensics show."""

import json

import pytest

from leveret.console import Console
from leveret.errors import DataError
from leveret.finetune.run import run


def outcome(config):
    return json.loads((config.output / "outcome.json").read_text())


@pytest.fixture
def console(tmp_path):
    return Console(quiet=True, log=tmp_path / "log")


def test_samples_are_left_out_by_key_and_counted(make_config, console):
    chats = make_config.folder / "chats.jsonl"
    whole, part = make_config("whole"), make_config("part", exclude_rows=[f"{chats}:3", f"{chats}:24"])
    run(whole, console)
    run(part, console)
    log = console.log.read_text()
    assert "22 records" in log and "left out 2: named in exclude_rows" in log
    assert outcome(whole)["identity"]["data"] != outcome(part)["identity"]["data"]
    xray = (part.output / "xray.html").read_text()
    assert "chats.jsonl:3<" not in xray and "chats.jsonl:4" in xray


def test_leaving_samples_out_is_the_same_as_not_having_them(make_config, console):
    chats = make_config.folder / "chats.jsonl"
    lines = chats.read_text().splitlines()
    part = make_config("part", exclude_rows=[f"{chats}:1"])
    run(part, console)
    chats.write_text("\n".join(lines[1:]))
    short = make_config("short")
    run(short, console)
    assert outcome(short)["identity"] == outcome(part)["identity"]
    first, second = ((each.output / "model/model.safetensors").read_bytes() for each in (part, short))
    assert first == second


def test_requests_have_keys_too_and_a_wrong_one_is_refused(make_config, console):
    requests = make_config.folder / "requests.jsonl"
    settings = {"data": [str(requests)], "tools": str(make_config.folder / "tools.json")}
    run(make_config("part", exclude_rows=[f"{requests}, request 2"], **settings), console)
    assert "20 records" in console.log.read_text()
    with pytest.raises(DataError) as caught:
        run(make_config("wrong", exclude_rows=[f"{requests}, request 200"], **settings), console)
    assert "1 of 1 keys are not in the training data" in str(caught.value)
    assert f"did you mean '{requests}, request 2" in str(caught.value)


def test_held_out_data_is_not_touched(make_config, console):
    chats, other = make_config.folder / "chats.jsonl", make_config.folder / "other.jsonl"
    other.write_text(chats.read_text())
    with pytest.raises(DataError, match="keys are not in the training data"):
        run(make_config("part", validation=[str(other)], exclude_rows=[f"{other}:1"]), console)


def test_a_spike_names_the_samples_of_its_worst_row_by_the_keys_that_leave_them_out(make_config, console):
    """One sample answers with garbage that no other has; the step with its row stands out."""
    chats = make_config.folder / "chats.jsonl"
    lines = [json.loads(line) for line in chats.read_text().splitlines()]
    lines[10]["messages"][3]["content"] = "\u0627\u0644\u0639\u0631\u0628"
    chats.write_text("\n".join(map(json.dumps, lines)))
    training = {
        "max_steps": 48, "rows_per_step": 1, "micro_batch_rows": 1, "precision": "fp32", "spike_window": 8,
        "checkpoint_every_steps": None, "learning_rate": 1e-2, "spike_threshold": 6.0,
    }  # fmt: skip
    config = make_config("spiky", training=training)
    assert run(config, console).summary["spikes"] >= 1
    found = [json.loads(file.read_text()) for file in (config.output / "forensics").glob("*.json")]
    keys = [document["key"] for report in found for document in report["rows"][0]["documents"]]
    assert f"{chats}:11" in keys
    without = make_config("without", training=training, exclude_rows=[f"{chats}:11"])
    assert run(without, console).summary.get("spikes", 0) == 0
