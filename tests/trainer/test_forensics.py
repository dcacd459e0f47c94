"""A look into a step: each row's own loss, worst first, with the text and the origin of every document in it."""

import dataclasses
import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from leveret.console import Console
from leveret.trainer.batches import Batch, BatchSource, batch_of
from leveret.trainer.config import TrainingConfig
from leveret.trainer.forensics import ROWS_WITH_TEXT, Forensics, row_losses, single_rows
from leveret.trainer.objective import CausalLoss
from leveret.trainer.parallel import placed
from leveret.trainer.world import joined

CONFIG = TrainingConfig(rows_per_step=8, micro_batch_rows=4, sequence_length=24, device="cpu")
FACTS = {"loss": 9.5, "typical": 2.25, "limit": 3.5, "gradient_norm": 7.0}


class Words:
    """A tokenizer whose words are numbers."""

    def decode(self, ids):
        return " ".join(f"<{token}>" for token in ids)


@pytest.fixture
def report(tmp_path, new_model, new_order):
    """A report of a step, its JSON and its page; `odd` rows lose more, or NaN."""

    def make(*, odd=(), by=50.0, num_rows=8, origins=None, tokenizer=None, facts=FACTS, action="only reported"):
        model, order = new_model(), new_order()
        loss = CausalLoss(model)

        def objective(batch):
            return loss(batch) + (by if set(batch.keys) & {f"toy:{row}" for row in odd} else 0.0)

        config = CONFIG.model_copy(update={"rows_per_step": num_rows})
        batches = BatchSource(order, config, rows_in_one_epoch=40).step(0)
        forensics = Forensics(tmp_path, model, objective, tokenizer=tokenizer, origins=origins)
        found, page = forensics.report(6, batches, reason="spike", action=action, facts=facts)
        assert page == tmp_path / "forensics/step-7.html"
        return found, json.loads(page.with_suffix(".json").read_text()), page.read_text()

    return make


def test_the_losses_are_those_of_the_rows_alone_and_the_worst_is_first(report, new_model, new_order):
    found, data, _ = report(odd=(5,))
    order, loss = new_order(), CausalLoss(new_model())
    for row in found.rows:
        alone = batch_of([order.row(int(row.key[4:]))], [row.key])
        expected = float(loss(alone).detach()) + (50.0 if row.key == "toy:5" else 0.0)
        assert row.loss == pytest.approx(expected / row.trained_tokens, rel=1e-5)
    losses = [row.loss for row in found.rows]
    assert found.rows[0].key == "toy:5" and losses == sorted(losses, reverse=True)
    assert {row.key for row in found.rows} == {f"toy:{row}" for row in range(8)}
    assert data["step"] == 7 and data["facts"] == FACTS and data["rows"][0]["key"] == "toy:5"


@pytest.mark.parametrize("by", [math.nan, math.inf])
def test_a_loss_that_is_no_number_comes_first_and_is_null_in_json(report, by):
    found, data, page = report(odd=(3,), by=by)
    assert not math.isfinite(found.rows[0].loss) and data["rows"][0] == {
        **data["rows"][0],
        "key": "toy:3",
        "loss": None,
    }
    assert all(math.isfinite(row.loss) for row in found.rows[1:])
    assert 'class="high"' in page


def test_a_row_that_trains_nothing_is_no_suspect(tmp_path, new_model, new_order):
    batch = batch_of([new_order().row(place) for place in range(3)], ["a", "b", "c"])
    batch.targets[0] = -100
    batch = dataclasses.replace(batch, trained_tokens=int((batch.targets >= 0).sum()))
    model = new_model()
    forensics = Forensics(tmp_path, model, CausalLoss(model))
    found, page = forensics.report(0, [batch], reason="spike", action="", facts={"limit": 0.5})
    assert [row.key for row in found.rows][-1] == "a" and math.isnan(found.rows[-1].loss)
    assert page.read_text().count('class="high"') == 2


def test_every_document_has_its_text_and_its_origin(report, new_order):
    asked = []

    def origins(keys):
        asked.extend(keys)
        return {key: [f"{key}.a.jsonl:1", f"{key}.b.jsonl:2"] for key in keys}

    found, _, page = report(origins=origins, tokenizer=Words())
    assert sorted(asked) == [f"toy:{row}" for row in range(8)]
    for row in found.rows:
        place = new_order().row(int(row.key[4:]))
        for number, document in enumerate(row.documents):
            ids = place.input_ids[place.document_ids == number].tolist()
            assert document.key == f"{row.key}.{'ab'[number]}.jsonl:{number + 1}"
            assert document.tokens == len(ids) and document.text == Words().decode(ids)
            assert html.escape(document.text) in page and document.key in page


def test_without_origins_the_key_of_a_row_names_its_samples(tmp_path, new_model, new_order):
    """As packing joins them: `chats.jsonl:3 + chats.jsonl:9`."""
    model, row = new_model(), new_order().row(0)
    batch = batch_of([row, row], ["chats.jsonl:3 + chats.jsonl:9", "chats.jsonl:4"])
    found, _ = Forensics(tmp_path, model, CausalLoss(model)).report(0, [batch], reason="spike", action="", facts={})
    two, unclear = sorted(found.rows, key=lambda row: row.key)
    assert [document.key for document in two.documents] == ["chats.jsonl:3", "chats.jsonl:9"]
    assert [document.key for document in unclear.documents] == [None, None]  # rather none than a wrong one


def test_rows_whose_origin_is_not_found_in_time_say_so(report):
    found, _, page = report(origins=lambda keys: {})
    assert {document.key for row in found.rows for document in row.documents} == {None}
    assert "source not known" in page


def test_the_page_shows_how_to_leave_out_the_worst_row(report):
    _, _, page = report(odd=(2,), origins=lambda keys: {key: [f'<{key}>".jsonl:1', f"{key}:2"] for key in keys})
    (lines,) = re.findall(r"exclude_rows:\n(.*?)</pre>", page, re.DOTALL)
    assert [json.loads(html.unescape(line).removeprefix("  - ")) for line in lines.splitlines()] == [
        '<toy:2>".jsonl:1', "toy:2:2",
    ]  # fmt: skip


def test_only_the_worst_rows_get_texts_and_the_page_says_where_the_others_are(report):
    found, data, page = report(num_rows=ROWS_WITH_TEXT + 4)
    assert [bool(row.documents) for row in found.rows] == [True] * ROWS_WITH_TEXT + [False] * 4
    assert len(data["rows"]) == ROWS_WITH_TEXT + 4
    assert "4 more rows are in step-7.json" in page


class Strict(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "td", "tr", "br"):
            self.open.append(tag)
        assert not {"src", "href"} & {name for name, _ in attributes}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_well_formed(report):
    parser = Strict()
    parser.feed(report(action="rolled back <to> step 3")[2])
    assert not parser.open


def test_the_model_is_left_as_it_was(new_model, new_order):
    model = new_model().train()
    state = torch.random.get_rng_state()
    seen = []

    def objective(batch):
        seen.append((model.training, torch.is_grad_enabled()))
        return CausalLoss(model)(batch)

    losses = row_losses(model, objective, single_rows(batch_of([new_order().row(0)], ["a"])))
    assert seen == [(False, False)] and len(losses) == 1
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_row_alone_has_everything_that_it_has_in_its_batch(new_order):
    """Every tensor of a batch is cut: a field that is added later must be cut too."""
    batch = batch_of([new_order().row(place) for place in range(3)], ["a", "b", "c"])
    batch = dataclasses.replace(batch, weights=torch.rand(batch.targets.shape))
    for place, row in enumerate(single_rows(batch)):
        assert row.keys == batch.keys[place : place + 1]
        for field in dataclasses.fields(Batch):
            value = getattr(batch, field.name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(row, field.name), value[place : place + 1]), field.name
    assert sum(row.trained_tokens for row in single_rows(batch)) == batch.trained_tokens
    assert sum(row.total_weight for row in single_rows(batch)) == pytest.approx(batch.total_weight)


def looked_into(folder, rows, mode):
    """A report of a step whose rows are shared, in a group."""
    from conftest import ToyOrder, make_model  # beside this file, in the process that forks

    config = TrainingConfig(
        rows_per_step=rows, micro_batch_rows=1, sequence_length=24, device="cpu", precision="fp32",
        parallel={"mode": mode},
    )  # fmt: skip
    source = BatchSource(ToyOrder(), config, rows_in_one_epoch=40)
    model = make_model()
    with joined(config) as world, placed(model, config, world, Console(quiet=True)):
        forensics = Forensics(Path(folder), model, CausalLoss(model), world=world)
        batches = source.step(0, rank=world.rank, num_ranks=world.size)
        report, _ = forensics.report(6, batches, reason="spike", action="", facts={})
        return [(row.key, row.loss, row.trained_tokens) for row in report.rows]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_several_processes_look_into_their_rows_together_and_one_writes(group, tmp_path, mode):
    (alone,) = group("test_forensics.looked_into", 0, folder=str(tmp_path / "alone"), rows=5, mode="ddp")
    together = group("test_forensics.looked_into", 2, folder=str(tmp_path / "together"), rows=5, mode=mode)
    assert together[0] == together[1]
    assert [key for key, *_ in together[0]] == [key for key, *_ in alone]
    assert [loss for _, loss, _ in together[0]] == pytest.approx([loss for _, loss, _ in alone], rel=1e-6)
    files = [json.loads((tmp_path / name / "forensics/step-7.json").read_text()) for name in ("alone", "together")]
    assert [row["documents"] for row in files[0]["rows"]] == [row["documents"] for row in files[1]["rows"]]
