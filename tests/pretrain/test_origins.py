"""From a row back to the files of its documents; and the whole way of a poisoned document: seen, named, left out."""

import json
import random
import time

import pytest

from leveret.console import Console
from leveret.data.examples import Document
from leveret.data.packing import stream_rows
from leveret.data.shards import build_shards
from leveret.errors import CheckpointError, DataError
from leveret.pretrain.origins import Origins
from leveret.pretrain.run import run
from leveret.tokenizer.train import train_byte_bpe
from leveret.trainer.loop import train
from leveret.trainer.metrics import read_metrics


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_bpe(["a leveret is a young hare"], vocab_size=270, special_tokens=["<eos>"], eos_token="<eos>")


@pytest.mark.parametrize("seed", range(4))
def test_the_documents_of_a_row_are_those_whose_text_is_in_it(tmp_path, tokenizer, seed):
    chosen = random.Random(seed)
    texts = [chr(97 + i % 26) * chosen.choice([1, 2, 5, 15, 16, 31, 70]) for i in range(40)]
    documents = [Document(text=text, source=f"some.jsonl:{number}") for number, text in enumerate(texts, start=1)]
    rows = stream_rows(build_shards(documents, tokenizer, tmp_path / "train-0", shard_characters=100), 16)
    origins = Origins([(rows, lambda: iter(documents))])
    keys = [rows.key(index) for index in range(len(rows))]
    found = origins(keys)
    assert {*found} == {*keys}
    for index, key in enumerate(keys):
        row = rows.row(index)
        for number, source in enumerate(found[key]):
            ids = row.input_ids[row.document_ids == number].tolist()
            text = texts[int(source.rpartition(":")[2]) - 1]
            assert tokenizer.decode(ids).removesuffix("<eos>") in text
        assert len(found[key]) == row.document_ids.max() + 1


def test_rows_of_another_source_are_left_out_and_read_nothing(tmp_path, tokenizer):
    documents = [Document(text="hare", source="a.txt")]
    rows = stream_rows(build_shards(documents, tokenizer, tmp_path / "train-0"), 16)

    def read():
        raise AssertionError("nothing of this source was asked for")

    assert Origins([(rows, read)])(["train-1, row 0", "toy:3"]) == {}


def test_reading_stops_after_some_seconds_and_at_the_last_document_asked_for(tmp_path, tokenizer):
    documents = [Document(text=f"hare {number}", source=f"a.jsonl:{number}") for number in range(40)]
    rows = stream_rows(build_shards(documents, tokenizer, tmp_path / "train-0"), 16)
    read = []

    def reading():
        for document in documents:
            read.append(document.source)
            time.sleep(0.002)
            yield document

    assert Origins([(rows, reading)], most_seconds=0.02)([rows.key(0), rows.key(len(rows) - 1)]).keys() <= {rows.key(0)}
    assert 2 <= len(read) < 20
    read.clear()
    Origins([(rows, reading)])([rows.key(0)])
    assert len(read) == rows.documents(0)[-1] + 1


POISON = 57
SETTINGS = {
    "validation": [],
    "training": {
        "max_steps": 60, "rows_per_step": 2, "micro_batch_rows": 2, "precision": "fp32", "log_every_steps": 1,
        "spike_window": 8, "checkpoint_every_steps": 5, "learning_rate": 1e-2,
    },
}  # fmt: skip


@pytest.fixture
def poisoned(make_config, texts):
    """A config whose data has one line of garbage among stories that are soon learnt."""
    lines = (texts / "train.jsonl").read_text(encoding="utf-8").splitlines()
    garbage = "".join(random.Random(0).choices([chr(code) for code in range(0x0600, 0x06FF)], k=120))
    lines[POISON - 1] = json.dumps({"text": garbage})
    (texts / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def make(output, *, excluded=(), **training):
        settings = {**SETTINGS, "training": {**SETTINGS["training"], **training}}
        return make_config(output, documents=[str(texts / "train.jsonl")], exclude_rows=excluded, **settings)

    make.key = f"{texts / 'train.jsonl'}:{POISON}"
    make.garbage = garbage
    make.console = Console(quiet=True, log=texts / "log")
    make.log = lambda: (texts / "log").read_text()
    return make


def reports(config):
    return [json.loads(file.read_text()) for file in sorted((config.output / "forensics").glob("*.json"))]


def test_a_poisoned_document_is_named_by_file_and_line_and_left_out_by_that_very_key(poisoned):
    seen = poisoned("seen")
    figures = run(seen, poisoned.console).summary
    assert figures["spikes"] >= 1
    found = reports(seen)
    worst = [document for report in found for document in report["rows"][0]["documents"]]
    (guilty,) = {document["key"] for document in worst if document["text"][:4] in poisoned.garbage}
    assert guilty == poisoned.key
    pages = "".join(page.read_text() for page in (seen.output / "forensics").glob("*.html"))
    assert f'  - "{guilty}"' in pages.replace("&quot;", '"')

    without = poisoned("without", excluded=[guilty])
    assert run(without, poisoned.console).summary.get("spikes", 0) == 0
    assert not (without.output / "forensics").exists()
    assert "119 records" in poisoned.log() and "left out 1: named in exclude_rows" in poisoned.log()
    identity = [json.loads((config.output / "outcome.json").read_text())["identity"] for config in (seen, without)]
    assert identity[0]["documents"] != identity[1]["documents"]
    assert run(without, poisoned.console).summary["steps"] == 60  # done: the keys are found again, nothing is trained


def test_rolled_back_the_run_goes_on_without_the_steps_of_the_poison(poisoned):
    config = poisoned("rolled", on_spike="rollback", spike_skip_steps=1)
    figures = run(config, poisoned.console).summary
    assert figures["skipped_steps"] == len(reports(config)) >= 1
    skipped = [line["step"] for line in read_metrics(config.output / "metrics.jsonl") if line.get("skipped")]
    assert skipped == [report["step"] for report in reports(config)]
    losses = [line["loss"] for line in read_metrics(config.output / "metrics.jsonl") if "loss" in line]
    assert max(losses[30:]) < min(report["facts"]["loss"] for report in reports(config))
    assert "rolled back: going on after step" in poisoned.log()


def test_a_row_can_be_left_out_too_and_is_part_of_what_the_run_is(poisoned):
    config = poisoned("row", excluded=["train-0, row 3"], max_steps=4)
    figures = run(config, poisoned.console).summary
    assert "left out 1 rows: named in exclude_rows" in poisoned.log()
    assert json.loads((config.output / "outcome.json").read_text())["identity"]["excluded_rows"] == ["train-0, row 3"]
    assert figures["steps"] == 4


def test_keys_that_are_not_in_the_data_are_refused_with_a_suggestion(poisoned):
    wrong = poisoned.key.replace("train.jsonl", "trian.jsonl")
    with pytest.raises(DataError) as caught:
        run(poisoned("wrong", excluded=[wrong]), poisoned.console)
    assert f"did you mean '{poisoned.key[:-2]}" in str(caught.value)
    with pytest.raises(DataError, match="first 'train-0, row 900'"):
        run(poisoned("wrong", excluded=["train-0, row 900"]), poisoned.console)


@pytest.mark.parametrize("keys", [[], ["train-0, row 3"]])
def test_a_run_that_is_half_done_is_not_taken_up_with_other_rows_left_out(poisoned, monkeypatch, keys):
    def dying(model, training, console):
        train(model, training, console)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("leveret.pretrain.run.train", dying)
        with pytest.raises(KeyboardInterrupt):
            run(poisoned("half", excluded=keys, max_steps=6), poisoned.console)
    with pytest.raises(CheckpointError, match=r"content|excluded_rows"):
        run(poisoned("half", excluded=[poisoned.key], max_steps=6), poisoned.console)
