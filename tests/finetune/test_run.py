"""Fine-tuning end to end on a tiny model: what is trained, what is refused, and that the model learns to stop."""

import json

import pytest

import leveret
from leveret.chat.template import builtin_template
from leveret.console import Console
from leveret.errors import ConfigError, DataError, NothingToTrain
from leveret.finetune import run as finetune
from leveret.paths import hash_tree
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.swap import quantize_linears
from leveret.tokenizer.files import Tokenizer
from leveret.tools.schema import ToolSet
from leveret.trainer import loop, xray
from leveret.trainer.metrics import read_metrics
from leveret.weights.load import load_model
from leveret.weights.save import save_model

QUIET = Console(quiet=True)


def chat(*turns):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


def write_lines(path, *records):
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def watch_x_ray(monkeypatch):
    """The labels that the X-ray saw."""
    seen = []
    examine = xray.examine
    monkeypatch.setattr(xray, "examine", lambda *args, **kwargs: seen.extend(examine(*args, **kwargs)) or seen)
    return seen


def trained_texts(tokenizer, labels):
    return [tokenizer.decode(xray.trained_ids(sample)) for sample in labels.samples]


def test_exactly_the_replies_and_their_stop_tokens_are_trained(make_config, watch_x_ray):
    config = make_config()
    finetune.run(config, QUIET)
    (labels,) = watch_x_ray
    tokenizer = Tokenizer.load(config.output / "model")
    assert trained_texts(tokenizer, labels) == [f"I am fine, {i}<|im_end|>你好！<|im_end|>" for i in range(24)]
    expected = sum(len(tokenizer.encode(text)) + 1 for i in range(24) for text in (f"I am fine, {i}", "你好！"))
    assert labels.trained_tokens == expected


def test_fine_tuning_in_fp8_ends_near_the_loss_of_bf16(make_config):
    found = [
        finetune.run(make_config(name, training={"fp8": fp8}), QUIET).summary["loss"]
        for name, fp8 in (("plain", None), ("fp8", {"recipe": "current"}))
    ]
    assert found[0] != found[1] == pytest.approx(found[0], rel=0.02)


def test_the_model_folder_has_template_tokenizer_and_tools(make_config):
    base = make_config.folder
    config = make_config(data=[str(base / "requests.jsonl"), str(base / "chats.jsonl")], tools=str(base / "tools.json"))
    finetune.run(config, QUIET)
    folder = config.output / "model"
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.chat_template == builtin_template("chatml").source
    assert ToolSet.load(folder).names == ("set_timer", "open_app")
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert set(stops) == {tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<eos>")}
    assert (config.output / "xray.html").is_file() and not (config.output / "checkpoints").exists()


def test_tool_requests_and_tool_calls_in_conversations_train_the_same_tokens(make_config, watch_x_ray):
    base = make_config.folder
    call = {"type": "function", "function": {"name": "set_timer", "arguments": '{"minutes": 7}'}}
    messages = [
        {"role": "user", "content": "set a timer for 7 minutes"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    as_chat = write_lines(base / "calls.jsonl", {"messages": messages})
    as_request = write_lines(
        base / "request.jsonl",
        {"query": "set a timer for 7 minutes", "calls": [{"name": "set_timer", "arguments": {"minutes": 7}}]},
    )
    config = make_config(data=[as_chat, as_request], tools=str(base / "tools.json"), training={"max_steps": 1})
    finetune.run(config, QUIET)
    (one,), (two,) = (labels.samples for labels in watch_x_ray)
    assert (list(one.ids), list(one.mask)) == (list(two.ids), list(two.mask))
    tokenizer = Tokenizer.load(config.output / "model")
    assert tokenizer.decode(xray.trained_ids(one)) == "<api_0>(7)<api_end><|im_end|>"
    assert tokenizer.id_of("<api_0>") in one.ids


def test_a_request_without_a_fitting_tool_trains_the_no_tool_token(make_config, watch_x_ray):
    base = make_config.folder
    data = write_lines(base / "none.jsonl", {"query": "tell me a joke", "calls": []})
    config = make_config(data=[data], tools=str(base / "tools.json"), training={"max_steps": 1})
    finetune.run(config, QUIET)
    tokenizer = Tokenizer.load(config.output / "model")
    assert trained_texts(tokenizer, watch_x_ray[0]) == ["<no_tool><|im_end|>"]


def test_special_token_text_of_a_user_stays_text(make_config, watch_x_ray):
    base = make_config.folder
    data = write_lines(base / "bad.jsonl", chat("say <|im_end|> and <api_0>", "no"))
    config = make_config(data=[data], tools=str(base / "tools.json"), training={"max_steps": 1})
    finetune.run(config, QUIET)
    tokenizer = Tokenizer.load(config.output / "model")
    (sample,) = watch_x_ray[0].samples
    assert list(sample.ids).count(tokenizer.id_of("<|im_end|>")) == 2  # the two turns' ends
    assert tokenizer.id_of("<api_0>") not in sample.ids


@pytest.mark.parametrize("template", ["chatml", "hare"])
def test_one_sample_learnt_by_heart_is_answered_and_then_stops(make_config, template):
    data = write_lines(make_config.folder / "one.jsonl", chat("hello", "I am fine"))
    config = make_config(
        data=[data],
        template=template,
        training={"max_steps": 60, "rows_per_step": 1, "micro_batch_rows": 1, "precision": "fp32",
                  "learning_rate": 1e-2, "checkpoint_every_steps": None},
    )  # fmt: skip
    finetune.run(config, QUIET)
    reply = leveret.load(config.output / "model").chat([{"role": "user", "content": "hello"}], max_tokens=20)
    assert (reply.content, reply.finish_reason) == ("I am fine", "stop")


def test_pad_that_is_eos_does_not_hide_the_stop_token(make_config, watch_x_ray):
    config = make_config(training={"max_steps": 1})
    finetune.run(config, QUIET)
    tokenizer = Tokenizer.load(config.output / "model")
    assert tokenizer.pad_id == tokenizer.eos_id
    assert watch_x_ray[0].stopped == len(watch_x_ray[0].samples)


def test_tool_calls_learnt_by_heart_come_back_as_calls(make_config):
    base = make_config.folder
    calls = [{"name": "set_timer", "arguments": {"minutes": 7}}, {"name": "open_app", "arguments": {"name": "music"}}]
    data = write_lines(base / "two.jsonl", {"query": "timer 7, then open music", "calls": calls})
    config = make_config(
        data=[data],
        tools=str(base / "tools.json"),
        training={"max_steps": 60, "rows_per_step": 1, "micro_batch_rows": 1, "precision": "fp32",
                  "learning_rate": 1e-2, "checkpoint_every_steps": None},
    )  # fmt: skip
    finetune.run(config, QUIET)
    (found,) = leveret.load(config.output / "model").call_tools(["timer 7, then open music"])
    assert [{"name": call.name, "arguments": call.arguments} for call in found] == calls


def test_a_killed_and_resumed_run_has_the_hash_of_an_uninterrupted_one(make_config, monkeypatch):
    base = make_config.folder
    data = [{"path": str(base / "requests.jsonl"), "weight": 2}, str(base / "chats.jsonl")]
    make = {"data": data, "tools": str(base / "tools.json"), "training": {"max_steps": 7}}
    whole, killed = make_config("whole", **make), make_config("killed", **make)
    finetune.run(whole, QUIET)
    step = loop.optimizer_step
    for death in (3, 6):

        def die(*args, death=death, **kwargs):
            if kwargs["step"] == death:
                raise KeyboardInterrupt
            return step(*args, **kwargs)

        monkeypatch.setattr(loop, "optimizer_step", die)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(killed, QUIET)
    monkeypatch.setattr(loop, "optimizer_step", step)
    assert finetune.run(killed, QUIET).summary["resumed_from_step"] == 6
    assert hash_tree(whole.output / "model") == hash_tree(killed.output / "model")
    before = hash_tree(killed.output)
    finetune.run(killed, QUIET)
    assert hash_tree(killed.output) == before


def test_a_sample_without_a_trained_token_is_refused_or_dropped_and_counted(make_config):
    base = make_config.folder
    silent = chat("hello", "never trained")
    silent["messages"][1]["loss"] = False
    data = write_lines(base / "silent.jsonl", chat("hello", "I am fine"), silent)
    with pytest.raises(NothingToTrain, match=r"silent\.jsonl:2"):
        finetune.run(make_config(data=[data]), QUIET)
    console = Console(quiet=True, log=base / "log")
    finetune.run(make_config(data=[data], on_untrained="drop", training={"max_steps": 1}), console)
    assert "1 samples dropped: nothing in them is trained" in (base / "log").read_text()


def test_a_conversation_without_a_reply_is_trained_with_the_whole_text_and_else_asked_about(make_config, watch_x_ray):
    base = make_config.folder
    data = write_lines(base / "asked.jsonl", chat("hello", "I am fine"), chat("today?"))
    with pytest.raises(NothingToTrain, match=r"asked\.jsonl:2.*\n.*on_untrained=drop"):
        finetune.run(make_config(data=[data]), QUIET)
    console = Console(quiet=True, log=base / "log")
    finetune.run(make_config(data=[data], on_untrained="drop", training={"max_steps": 1}), console)
    assert "1 samples dropped: nothing in them is trained" in (base / "log").read_text()
    watch_x_ray.clear()
    finetune.run(make_config("whole", data=[data], mask="full", training={"max_steps": 1}), QUIET)
    assert sum(len(labels.samples) for labels in watch_x_ray) == 2


def test_keys_of_messages_that_nobody_reads_are_told(make_config):
    base = make_config.folder
    odd = chat("hello", "I am fine")
    odd["messages"][1]["weigth"] = 0
    data = write_lines(base / "odd.jsonl", chat("hello", "I am fine"), odd)
    finetune.run(make_config(data=[data], training={"max_steps": 1}), Console(quiet=True, log=base / "log"))
    assert (
        f"nothing reads 'weigth' (1; did you mean 'weight'?) in messages; first at {data}:2"
        in (base / "log").read_text()
    )


@pytest.mark.parametrize(
    ("choice", "outcome"), [("drop", "1 samples dropped: longer than 96"), ("truncate", "1 samples cut at 96")]
)
def test_a_sample_that_is_too_long_is_handled_as_asked_and_counted(make_config, choice, outcome):
    base = make_config.folder
    data = write_lines(base / "long.jsonl", chat("hello", "I am fine"), chat("hello", "I am fine. " * 60))
    console = Console(quiet=True, log=base / "log")
    finetune.run(make_config(data=[data], on_long=choice, training={"max_steps": 1}), console)
    assert outcome in (base / "log").read_text()
    with pytest.raises(DataError, match=r"long\.jsonl:2"):
        finetune.run(make_config("other", data=[data], on_long="error"), QUIET)


def test_when_truncation_leaves_no_stop_token_the_run_is_refused(make_config):
    data = write_lines(make_config.folder / "long.jsonl", *[chat("hello", "I am fine. " * 60)] * 3)
    with pytest.raises(NothingToTrain, match="stop token"):
        finetune.run(make_config(data=[data], on_long="truncate"), QUIET)


def test_tool_requests_without_a_tool_set_are_refused_with_the_way_out(make_config):
    with pytest.raises(DataError, match="set `tools`"):
        finetune.run(make_config(data=[str(make_config.folder / "requests.jsonl")]), QUIET)


def test_a_call_of_an_unknown_tool_names_file_and_line(make_config):
    base = make_config.folder
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [
        {"type": "function", "function": {"name": "set_timr", "arguments": "{}"}}]}]  # fmt: skip
    data = write_lines(base / "calls.jsonl", chat("a", "b"), {"messages": messages})
    with pytest.raises(DataError, match=r"calls\.jsonl:2.*set_timr"):
        finetune.run(make_config(data=[data], tools=str(base / "tools.json")), QUIET)


def test_a_message_with_text_and_calls_is_refused_rather_than_cut(make_config):
    base = make_config.folder
    call = {"type": "function", "function": {"name": "open_app", "arguments": '{"name": "music"}'}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "Sure!", "tool_calls": [call]},
    ]
    data = write_lines(base / "both.jsonl", {"messages": messages})
    with pytest.raises(DataError, match=r"both\.jsonl:1.*both text and tool calls"):
        finetune.run(make_config(data=[data], tools=str(base / "tools.json")), QUIET)


def test_a_template_that_marks_nothing_for_training_is_refused(make_config):
    plain = make_config.folder / "plain.jinja"
    plain.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(ConfigError, match=r"template: .* does not say what the model writes"):
        finetune.run(make_config(template=str(plain)), QUIET)


def test_a_template_file_may_end_replies_with_the_tokenizer_s_own_token(make_config):
    file = make_config.folder / "eos.jinja"
    file.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    )
    finetune.run(make_config(template=str(file)), QUIET)
    folder = make_config.folder / "run" / "model"
    stop = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert stop == Tokenizer.load(folder).eos_id


def test_a_template_file_that_is_not_text_is_named(make_config):
    plain = make_config.folder / "plain.jinja"
    plain.write_bytes(b"{% for m in messages %}\xff{% endfor %}")
    with pytest.raises(ConfigError, match=r"template: .*plain.jinja is not UTF-8: .* at byte 23"):
        finetune.run(make_config(template=str(plain)), QUIET)


@pytest.mark.parametrize(
    ("key", "name", "content", "said"),
    [
        ("template", "wrong.jinja", "{% for %}", "template: .*wrong.jinja.*line 1"),
        ("template", "missing.jinja", None, "template: there is no file .*missing.jinja"),
        ("tools", "wrong.json", "[1, 2", "tools: .*wrong.json is not JSON"),
        ("tools", "missing.json", None, "tools: .*missing.json does not exist"),
    ],
)
def test_a_file_that_the_config_names_in_vain_is_a_mistake_of_its_key(make_config, key, name, content, said):
    file = make_config.folder / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        finetune.run(make_config(**{key: str(file)}), QUIET)


def test_a_misspelt_template_is_told_when_the_config_is_read(make_config):
    with pytest.raises(ConfigError, match=r"template: 'chatlm' is no built-in chat template.*did you mean chatml"):
        make_config(template="chatlm")


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(make_config, seed):
    with pytest.raises(ConfigError, match="seed: should be"):
        make_config(seed=seed)


def test_weighing_the_tools_tokens_needs_tools(make_config):
    with pytest.raises(ConfigError, match=r"functional_token_weight \(5\.0\) is read with tools only"):
        make_config(functional_token_weight=5.0)


def test_rows_longer_than_the_model_s_context_are_refused(make_config):
    with pytest.raises(ConfigError, match="at most 128 tokens"):
        finetune.run(make_config(training={"sequence_length": 256}), QUIET)


def test_functional_tokens_can_count_more(make_config):
    base = make_config.folder
    make = {"data": [str(base / "requests.jsonl")], "tools": str(base / "tools.json"), "training": {"max_steps": 1}}
    plain, weighted = make_config("plain", **make), make_config("weighted", **make, functional_token_weight=5.0)
    finetune.run(plain, QUIET)
    finetune.run(weighted, QUIET)
    losses = [read_metrics(config.output / "metrics.jsonl")[0]["loss"] for config in (plain, weighted)]
    assert losses[0] != pytest.approx(losses[1], abs=1e-4)


def test_validation_data_is_measured_and_not_trained(make_config):
    base = make_config.folder
    held_out = write_lines(base / "held_out.jsonl", chat("hello", "good morning"))
    result = finetune.run(make_config(validation=[held_out]), QUIET)
    assert result.summary["validation_loss"] > 0
    plain = finetune.run(make_config("plain"), QUIET)
    assert "validation_loss" not in plain.summary
    assert hash_tree(base / "run" / "model") == hash_tree(base / "plain" / "model")


def test_a_held_out_sample_that_is_also_trained_is_refused(make_config):
    base = make_config.folder
    held_out = write_lines(base / "held_out.jsonl", chat("hello", "good morning"),
                           chat("hello", "I am fine, 7", "today?", "你好！"))  # fmt: skip
    for more in ({}, {"bpe_dropout": 0.3}):
        with pytest.raises(DataError, match=r"1 held-out samples .* first .*held_out.jsonl:2 = .*chats.jsonl:8\n"):
            finetune.run(make_config(validation=[held_out], **more), QUIET)
    chats = str(base / "chats.jsonl")
    finetune.run(make_config(validation=[held_out], exclude_rows=[f"{chats}:8"], training={"max_steps": 1}), QUIET)


def test_held_out_data_is_part_of_a_run_where_it_decides_what_is_published(make_config):
    base, found = make_config.folder, {}
    for name, more in (("decides", {"evaluate_every_steps": 1, "early_stop_patience": 9}), ("watches", {})):
        for text in ("good morning", "good evening"):
            held_out = write_lines(base / "held_out.jsonl", chat("hello", text))
            console = Console(quiet=True, log=base / f"{name}.log")
            finetune.run(make_config(name, validation=[held_out], training={"max_steps": 2, **more}), console)
        found[name] = "is there already" in console.log.read_text()
    assert found == {"decides": False, "watches": True}


def test_an_output_among_the_conversations_is_refused(make_config):
    folder = make_config.folder
    with pytest.raises(ConfigError, match=r"the output .* lies in"):
        finetune.run(make_config(data=[str(folder)], output=str(folder / "in/run")), QUIET)
    assert not (folder / "in").exists()


def test_an_empty_file_is_named(make_config):
    (make_config.folder / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty.jsonl: there is no sample"):
        finetune.run(make_config(validation=[str(make_config.folder / "empty.jsonl")]), QUIET)


def test_a_quantized_model_is_refused_before_anything_is_read(make_config):
    base = make_config.folder
    storage = GptqStorage(bits=4, group_size=32, symmetric=True)
    model = load_model(base / "base")
    quantize_linears(model, storage)
    save_model(model, base / "base", quantization_config=storage.to_dict())
    with pytest.raises(ConfigError, match="is quantized; only an adapter"):
        finetune.run(make_config(data=[str(base / "nothing.jsonl")]), QUIET)
