"""Masks, long conversations and BPE dropout, through the verb: what reaches the model, and what is reported."""

import gzip
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from leveret.chat.messages import Message
from leveret.chat.template import builtin_template
from leveret.console import Console
from leveret.data.examples import Conversation
from leveret.data.files import ReadReport
from leveret.data.samples import render_sample
from leveret.errors import ConfigError, DataError
from leveret.finetune import run as finetune
from leveret.finetune import samples as samples_module
from leveret.finetune.rows import trained_sources
from leveret.finetune.samples import Writing, read_samples
from leveret.forked import in_processes
from leveret.paths import hash_tree
from leveret.tokenizer.dropout import BpeDropout
from leveret.tokenizer.files import Tokenizer
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import ToolSet, tools_from_json
from leveret.trainer import loop, xray

from .conftest import REQUESTS, TOOLS

TOOL_SET = ToolSet(tools_from_json(TOOLS))

QUIET = Console(quiet=True)


def write_lines(path, *records):
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return str(path)


def chat(*turns):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


@pytest.fixture
def x_ray(monkeypatch):
    """The labels that the X-ray saw."""
    seen = []
    examine = xray.examine
    monkeypatch.setattr(xray, "examine", lambda *args, **kwargs: seen.extend(examine(*args, **kwargs)) or seen)
    return seen


@pytest.mark.parametrize(
    ("mask", "template", "taught"),
    [
        ("assistant", "hare", "fine<round_end>no<round_end>"),
        ("aquila", "hare", "fine<round_end>no<round_end>"),
        ("firefly", "hare", "fine<round_end>\nno<round_end>\n"),
        ("lingowhale", "lingowhale", "fine<!!EOS!!>no<!!EOS!!>"),
        ("full", "lingowhale", "how?<!!ASSISTANT!!>fine<!!USER!!>why?<!!ASSISTANT!!>no<!!EOS!!>"),
    ],
)
def test_the_x_ray_sees_what_each_mask_teaches(make_config, x_ray, mask, template, taught):
    data = write_lines(make_config.folder / "d.jsonl", chat("how?", "fine", "why?", "no"))
    config = make_config(data=[data], template=template, mask=mask, training={"max_steps": 1})
    finetune.run(config, QUIET)
    tokenizer = Tokenizer.load(config.output / "model")
    assert tokenizer.decode(xray.trained_ids(x_ray[0].samples[0])) == taught
    page = (config.output / "xray.html").read_text()
    assert ("→" in page) == (mask == "lingowhale")
    assert x_ray[0].stopped == 1


def test_a_mask_that_does_not_fit_the_template_is_a_mistake_of_the_config(make_config):
    with pytest.raises(ConfigError, match=r"mask: .* LingoWhale"):
        finetune.run(make_config(mask="lingowhale"), QUIET)


def test_long_conversations_are_split_and_counted(make_config, x_ray, capsys):
    turns = [text for i in range(12) for text in (f"how are you {i}", f"I am fine, {i}")]
    data = write_lines(make_config.folder / "d.jsonl", chat("hello", "fine"), chat(*turns), chat("how" * 200, "no"))
    config = make_config(data=[data], on_long="split", training={"max_steps": 1})
    finetune.run(config, Console())
    (labels,) = x_ray
    assert all(len(sample.ids) <= 96 for sample in labels.samples)
    tokenizer = Tokenizer.load(config.output / "model")
    taught = "".join(tokenizer.decode(xray.trained_ids(sample)) for sample in labels.samples[1:])
    assert taught == "".join(f"I am fine, {i}<|im_end|>" for i in range(12))
    shown = " ".join("".join(capsys.readouterr()).split())
    assert f"split 1 long conversations into {len(labels.samples) - 1} parts" in shown
    assert "1 samples dropped: longer than 96 tokens" in shown


def test_parts_have_the_key_of_the_whole(make_config, tmp_path):
    tokenizer = Tokenizer.load(make_config.folder / "base")
    tokenizer.add_special_tokens(builtin_template("chatml").special_tokens)
    data = write_lines(tmp_path / "d.jsonl", chat("hello", "I am fine", "today?", "no"))
    writing = Writing(tokenizer=tokenizer, template=builtin_template("chatml"), split_above=30)
    (parts,) = read_samples(tmp_path / "d.jsonl", ReadReport(), writing)
    assert [sample.key for _, sample in parts] == [f"{data}:1"] * 2


def test_a_conversation_that_is_left_out_goes_with_all_its_parts(make_config, x_ray):
    turns = [text for i in range(12) for text in (f"how are you {i}", f"I am fine, {i}")]
    data = write_lines(make_config.folder / "d.jsonl", chat("hello", "fine"), chat(*turns))
    console = Console(quiet=True, log=make_config.folder / "log")
    finetune.run(
        make_config(data=[data], on_long="split", exclude_rows=[f"{data}:2"], training={"max_steps": 1}), console
    )
    assert [sample.key for sample in x_ray[0].samples] == [f"{data}:1"]
    log = (make_config.folder / "log").read_text()
    assert "1 records from 1 files" in log and "left out 1: named in exclude_rows" in log


def test_what_was_thought_is_counted_where_the_template_does_not_write_it(make_config):
    thinking = chat("hello", "fine", "why?", "so")
    thinking["messages"][1]["reasoning_content"] = "polite"
    data = write_lines(make_config.folder / "d.jsonl", thinking, chat("hello", "fine"))
    console = Console(quiet=True, log=make_config.folder / "log")
    finetune.run(make_config(data=[data], training={"max_steps": 1}), console)
    log = " ".join((make_config.folder / "log").read_text().split())
    assert "left out 1: reasoning_content of messages, which the chat template does not write" in log


def test_bpe_dropout_writes_each_pass_anew_and_the_same_text(make_config):
    tokenizer = Tokenizer.load(make_config.folder / "base")
    tokenizer.add_special_tokens(builtin_template("chatml").special_tokens)
    writing = Writing(tokenizer=tokenizer, template=builtin_template("chatml"))
    messages = (Message("user", "hello there, how are you today? <|im_end|>"), Message("assistant", "I am fine."))
    conversation = Conversation(messages=messages, key="x:1")
    plain = writing.sample(conversation)
    dropout = BpeDropout(tokenizer, 0.5)
    forms = writing.forms([(conversation, plain)] * 2, dropout, passes=3, seed=0)
    samples = [sample for form in forms for sample in form]
    assert len({tuple(sample.ids) for sample in [plain, *samples]}) == 7
    assert forms == writing.forms([(conversation, plain)] * 2, dropout, passes=3, seed=0)
    for sample in samples:
        assert tokenizer.decode(sample.ids) == tokenizer.decode(plain.ids)
        assert tokenizer.decode(xray.trained_ids(sample)) == "I am fine.<|im_end|>"
        assert list(sample.ids).count(tokenizer.id_of("<|im_end|>")) == 2


def test_what_is_read_takes_a_few_bytes_a_token(make_config, tmp_path):
    tokenizer = Tokenizer.load(make_config.folder / "base")
    tokenizer.add_special_tokens(builtin_template("chatml").special_tokens)
    writing = Writing(tokenizer=tokenizer, template=builtin_template("chatml"))
    path = write_lines(tmp_path / "chats.jsonl", chat("hello there", "I am fine."), chat("bye", "see you"))
    for [(conversation, sample)] in read_samples(Path(path), ReadReport(), writing):
        whole = render_sample(tokenizer, writing.template, conversation)
        assert memoryview(sample.ids).nbytes + memoryview(sample.mask).nbytes == 5 * len(whole.ids)
        assert (list(sample.ids), list(sample.mask), sample.key) == (whole.ids, whole.mask, whole.key)
        assert sample.num_trained == whole.num_trained


def test_compressed_requests_are_requests(make_config, x_ray):
    base = make_config.folder
    packed = base / "requests.jsonl.gz"
    packed.write_bytes(gzip.compress((base / "requests.jsonl").read_bytes()))
    more = {"tools": str(base / "tools.json"), "training": {"max_steps": 1}}
    for name, data in (("plain", base / "requests.jsonl"), ("packed", packed)):
        finetune.run(make_config(name, data=[str(data)], **more), QUIET)
    assert [sample.ids for sample in x_ray[0].samples] == [sample.ids for sample in x_ray[1].samples]


def test_a_first_line_with_too_many_brackets_is_told_with_its_place(make_config, tmp_path):
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"deep\.jsonl:1: .* too many brackets"):
        finetune.run(make_config(data=[str(tmp_path / "deep.jsonl")]), QUIET)


@pytest.mark.parametrize(("weight", "forms"), [(1, 1), (3, 3), (0.5, 1)])
def test_a_source_that_is_drawn_more_often_has_more_forms(make_config, weight, forms):
    tokenizer = Tokenizer.load(make_config.folder / "base")
    tokenizer.add_special_tokens(builtin_template("chatml").special_tokens)
    writing = Writing(tokenizer=tokenizer, template=builtin_template("chatml"))
    data = [{"path": str(make_config.folder / "chats.jsonl"), "weight": weight}]
    config = make_config(data=data, bpe_dropout=0.5, training={"num_epochs": 1, "max_steps": None})
    (source,) = trained_sources(config, writing, QUIET, BpeDropout(tokenizer, 0.5))
    assert len(source.rows.passes) == forms


def test_several_processes_read_what_one_reads(make_config, tmp_path, monkeypatch):
    tokenizer = Tokenizer.load(make_config.folder / "base")
    tokenizer.add_special_tokens([*builtin_template("chatml").special_tokens, *FunctionalDialect(TOOL_SET).tokens])
    writing = Writing(
        tokenizer=tokenizer,
        template=builtin_template("chatml"),
        dialect=FunctionalDialect(TOOL_SET, reserved=tokenizer.special_ids),
        split_above=30,
    )
    write_lines(
        tmp_path / "chats.jsonl", *(chat("hello", f"I am fine, {i}", "today?" * (i % 3), "no") for i in range(9))
    )
    write_lines(tmp_path / "requests.jsonl", *REQUESTS)

    def read():
        reports = [ReadReport(), ReadReport()]
        files = ("chats.jsonl", "requests.jsonl")
        groups = [read_samples(tmp_path / file, report, writing) for file, report in zip(files, reports, strict=True)]
        written = [part for parts in groups[0] for part in parts]
        return groups, reports, writing.forms(written, BpeDropout(tokenizer, 0.5), passes=2, seed=3)

    alone = read()
    assert alone[1][0].num_parts > 9 and len(alone[0][1]) == len(REQUESTS)
    monkeypatch.setattr(samples_module, "in_processes", partial(in_processes, processes=3, least=1))
    assert read() == alone
    (tmp_path / "requests.jsonl").write_text(json.dumps(REQUESTS[0]) + "\n" * 8 + '{"query": "play"}\n')
    with pytest.raises(DataError, match=r'line 9: .*needs "calls"|requests.jsonl:9'):
        read()


def test_a_run_with_bpe_dropout_that_died_gives_the_weights_of_one_that_did_not(make_config, monkeypatch, x_ray):
    held_out = write_lines(make_config.folder / "v.jsonl", chat("hello there", "how are you today?"))
    more = {"bpe_dropout": 0.3, "validation": [held_out]}
    whole, broken = make_config("whole", **more), make_config("broken", **more)
    seen = []
    validation = finetune.Validation
    monkeypatch.setattr(finetune, "Validation", lambda *args: seen.append(args[1]) or validation(*args))
    finetune.run(whole, QUIET)
    (rows,) = seen[0]
    ids = rows.row(0).input_ids
    tokenizer = Tokenizer.load(whole.output / "model")
    assert set(tokenizer.encode("how are you today?")) <= set(np.asarray(ids).tolist())
    assert json.loads(tokenizer.to_json())["model"]["dropout"] is None

    step, calls = loop.optimizer_step, []

    def dies(*args, **kwargs):
        calls.append(kwargs["step"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", dies)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(broken, QUIET)
    finetune.run(broken, QUIET)
    assert hash_tree(whole.output / "model") == hash_tree(broken.output / "model")
