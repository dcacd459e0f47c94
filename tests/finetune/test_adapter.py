"""Fine-tuning with an adapter: what is trained, what is left alone, and the folders that come of it."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import leveret
from leveret.console import Console
from leveret.errors import ConfigError, HubError
from leveret.finetune import run as finetune
from leveret.model.config import MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.paths import hash_tree
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.swap import quantize_linears
from leveret.tokenizer.files import Tokenizer
from leveret.trainer import loop
from leveret.trainer.metrics import read_metrics
from leveret.trainer.snapshot import Manifest
from leveret.weights.load import load_model
from leveret.weights.save import save_model

QUIET = Console(quiet=True)
IDS = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(1))
BY_HEART = {"max_steps": 60, "rows_per_step": 1, "micro_batch_rows": 1, "precision": "fp32", "learning_rate": 1e-2,
            "checkpoint_every_steps": None}  # fmt: skip


@pytest.fixture
def make(make_config):
    def build(output="run", adapter=None, **changes):
        return make_config(output, adapter={"rank": 4, "alpha": 8} | (adapter or {}), **changes)

    build.folder = make_config.folder
    return build


def one_chat(folder):
    file = folder / "one.jsonl"
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "I am fine"}]
    file.write_text(json.dumps({"messages": turns}))
    return [str(file)]


def test_a_conversation_learnt_by_heart_is_answered_by_the_adapter_s_folder_and_by_the_merged_model(make):
    adapter = {"merge": True, "modules_to_save": ["embed_tokens"]}
    config = make(adapter=adapter, data=one_chat(make.folder), training=BY_HEART)
    finetune.run(config, QUIET)
    question = [{"role": "user", "content": "hello"}]
    loaded = {
        "adapter": leveret.load(config.output / "adapter"),
        "both": leveret.load(make.folder / "base", adapter=config.output / "adapter"),
        "merged": leveret.load(config.output / "model"),
    }
    for model in loaded.values():
        reply = model.chat(question, max_tokens=20)
        assert (reply.content, reply.finish_reason) == ("I am fine", "stop")
    with torch.no_grad():
        torch.testing.assert_close(loaded["merged"].model(IDS), loaded["adapter"].model(IDS), rtol=1e-3, atol=1e-4)
    record = json.loads((config.output / "model" / "merge.json").read_text())
    assert len(record["lost"]) == 14 and max(record["lost"].values()) < 1e-4
    assert not (make.folder / "base" / "tools.json").exists()
    assert (config.output / "outcome.json").is_file() and not (config.output / "checkpoints").exists()


def test_new_tokens_learn_and_every_old_row_stays_to_the_bit(make):
    config = make(tools=str(make.folder / "tools.json"), data=[str(make.folder / "requests.jsonl")])
    finetune.run(config, QUIET)
    before, after = load_model(make.folder / "base"), load_model(config.output / "adapter")
    old = before.config.vocab_size
    assert torch.equal(after.embed_tokens.weight[:old], before.embed_tokens.weight)
    tokenizer = Tokenizer.load(config.output / "adapter")
    assert after.config.vocab_size == tokenizer.vocab_size > old
    start = load_file(config.output / "adapter" / "adapter_model.safetensors")
    rows = start["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    assert len(rows) == tokenizer.vocab_size - old and len(rows.unique(dim=0)) == len(rows)


def test_old_tokens_are_trained_when_asked_and_unknown_ones_refused(make):
    config = make(adapter={"train_tokens": ["<eos>"]})
    finetune.run(config, QUIET)
    before, after = load_model(make.folder / "base"), load_model(config.output / "adapter")
    moved = (before.embed_tokens.weight != after.embed_tokens.weight[: before.config.vocab_size]).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [Tokenizer.load(make.folder / "base").id_of("<eos>")]
    with pytest.raises(ConfigError, match=r"train_tokens: .*<nowhere>"):
        finetune.run(make("other", {"train_tokens": ["<nowhere>"]}), QUIET)


def test_tables_trained_whole_move_and_stay_one_if_they_were(make):
    config = make(adapter={"modules_to_save": ["embed_tokens"], "targets": ["q_proj"]})
    finetune.run(config, QUIET)
    before, after = load_model(make.folder / "base"), load_model(config.output / "adapter")
    old = before.config.vocab_size
    assert after.config.tie_word_embeddings and after.lm_head.weight is after.embed_tokens.weight
    assert (before.embed_tokens.weight != after.embed_tokens.weight[:old]).any(dim=1).float().mean() > 0.9
    tensors = load_file(config.output / "adapter" / "adapter_model.safetensors")
    assert not any("trainable_tokens" in name for name in tensors)
    assert torch.equal(
        tensors["base_model.model.lm_head.weight"], tensors["base_model.model.model.embed_tokens.weight"]
    )


@pytest.mark.parametrize(
    ("adapter", "training"),
    [
        ({"dropout": 0.1}, {}),
        ({"dora": True, "rslora": True}, {"precision": "fp32"}),
        ({"modules_to_save": ["embed_tokens", "norm"]}, {"recompute": "layers"}),
        ({}, {"optimizer": "adamw_8bit"}),
        ({"base": "nf4", "dropout": 0.1}, {"precision": "bf16"}),
        ({}, {"fp8": {"history_steps": 3}}),
    ],
)
def test_a_killed_and_resumed_run_has_the_hash_of_an_uninterrupted_one(make, monkeypatch, adapter, training):
    whole = make("whole", adapter, training={"max_steps": 7, **training})
    killed = make("killed", adapter, training={"max_steps": 7, **training})
    finetune.run(whole, QUIET)
    step, calls = loop.optimizer_step, []

    def step_or_die(*args, **kwargs):
        calls.append(1)
        if len(calls) in (4, 8):  # after the checkpoints at 2 and 4
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(loop, "optimizer_step", step_or_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            finetune.run(killed, QUIET)
    finetune.run(killed, QUIET)
    assert hash_tree(killed.output / "adapter") == hash_tree(whole.output / "adapter")


def test_a_checkpoint_holds_only_what_is_trained(make):
    config = make(training={"keep_final_checkpoint": True})
    finetune.run(config, QUIET)
    (folder,) = (config.output / "checkpoints").glob("step-*")
    names = set(Manifest.read(folder).layout)
    assert {name.rpartition(".")[2] for name in names} == {"lora_A", "lora_B", "rows"}
    with safe_open(folder / "state.safetensors", framework="pt") as state:
        masters = state.get_tensor("masters").numel()
    assert masters < 0.5 * sum(parameter.numel() for parameter in load_model(make.folder / "base").parameters())


@pytest.mark.parametrize("recompute", ["nothing", "layers"])
def test_after_one_step_every_change_has_begun(make, recompute):
    finetune.run(make(training={"max_steps": 1, "recompute": recompute}), QUIET)
    tensors = load_file(make.folder / "run" / "adapter" / "adapter_model.safetensors")
    thin = {name: tensor for name, tensor in tensors.items() if "lora_B" in name}
    assert len(thin) == 14 and all(tensor.any() for tensor in thin.values())


def test_a_finished_run_is_merged_later_without_training_again(make, monkeypatch):
    finetune.run(make(), QUIET)
    assert not (make.folder / "run" / "model").exists()
    monkeypatch.setattr(finetune, "train", None)
    finetune.run(make(adapter={"merge": True}), QUIET)
    first = hash_tree(make.folder / "run" / "model")
    finetune.run(make(adapter={"merge": True}), QUIET)
    assert hash_tree(make.folder / "run" / "model") == first
    (make.folder / "run" / "model" / "model.safetensors").unlink()
    finetune.run(make(adapter={"merge": True}), QUIET)
    assert hash_tree(make.folder / "run" / "model") == first
    monkeypatch.undo()
    finetune.run(make(adapter={"merge": True}, seed=1), QUIET)
    assert hash_tree(make.folder / "run" / "model") != first


def test_another_rank_is_another_run(make):
    finetune.run(make(), QUIET)
    before = hash_tree(make.folder / "run" / "adapter")
    finetune.run(make(adapter={"rank": 2}), QUIET)
    assert hash_tree(make.folder / "run" / "adapter") != before


def test_a_quantized_model_is_trained_beside_but_not_merged_into(make):
    model = load_model(make.folder / "base")
    storage = GptqStorage(bits=4, group_size=32, symmetric=True)
    quantize_linears(model, storage)
    save_model(model, make.folder / "four", quantization_config=storage.to_dict())
    Tokenizer.load(make.folder / "base").save(make.folder / "four")
    with pytest.raises(ConfigError, match="is quantized: the change would be rounded away"):
        finetune.run(make(adapter={"merge": True}, model=str(make.folder / "four")), QUIET)
    finetune.run(make(model=str(make.folder / "four")), QUIET)
    before, after = load_model(make.folder / "four")(IDS), load_model(make.folder / "run" / "adapter")(IDS)
    assert after.isfinite().all() and (after[..., : before.shape[-1]] != before).any()


@pytest.mark.parametrize("adapter", [{}, {"modules_to_save": ["embed_tokens"]}, {"targets": ["lm_head"]}])
def test_a_quantized_head_takes_new_tokens_tables_and_a_change_of_its_own(make, adapter):
    config = replace(load_model(make.folder / "base").config, tie_word_embeddings=False, vocab_size=320)
    model = Decoder(config)
    init_weights(model, 0)
    storage = GptqStorage(bits=4, group_size=32, symmetric=True, lm_head=True)
    quantize_linears(model, storage)
    save_model(model, make.folder / "four", quantization_config=storage.to_dict())
    tokenizer = Tokenizer.load(make.folder / "base")
    if "targets" in adapter:  # rows of new tokens in a head with a LoRA are refused
        tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(make.folder / "four")
    finetune.run(make(adapter=adapter, model=str(make.folder / "four")), QUIET)
    before, after = load_model(make.folder / "four")(IDS), load_model(make.folder / "run" / "adapter")(IDS)
    assert after.isfinite().all() and (after != before).any()


def test_what_is_not_there_is_refused_before_training(make):
    for adapter, match in (
        ({"targets": ["q_porj"]}, r"did you mean q_proj"),
        ({"modules_to_save": ["emb"]}, r"modules_to_save names 'emb', which is not there"),
        ({"modules_to_save": ["q_proj"]}, r"'q_proj', which has an adapter already"),
        ({"base": "nf4", "targets": ["q_proj"], "modules_to_save": ["down_proj"]}, r"'down_proj', which is quantized"),
    ):
        with pytest.raises(ConfigError) as caught:
            finetune.run(make(adapter=adapter), QUIET)
        caught.match(match)
    finetune.run(make(), QUIET)
    with pytest.raises(HubError, match=r"holds an adapter; fine-tuning needs a whole model"):
        finetune.run(make("next", model=str(make.folder / "run" / "adapter")), QUIET)


@pytest.mark.parametrize("adapter", [{"targets": ["gate"]}, {"targets": ["q_proj"], "modules_to_save": ["gate"]}])
def test_routers_are_frozen_or_trained_by_an_adapter_but_not_both(make, adapter):
    base, folder = make.folder / "base", make.folder / "mixture"
    config = replace(load_model(base).config, family="mixtral", moe=MoeConfig(num_experts=4, experts_per_token=2))
    mixture = Decoder(config)
    init_weights(mixture, 0)
    save_model(mixture, folder)
    Tokenizer.load(base).save(folder)
    with pytest.raises(ConfigError, match=r"names the routers, but training\.freeze_router leaves them"):
        finetune.run(make(adapter=adapter, model=str(folder), training={"freeze_router": True}), QUIET)


def with_template_tokens(make_config, *, tied=True):
    """A start that needs no new tokens, and one whose head is a table of its own."""
    finetune.run(make_config("start", training={"max_steps": 1, "precision": "fp32"}), QUIET)
    folder = make_config.folder / "start" / "model"
    if not tied:
        model = load_model(folder)
        model.config = replace(model.config, tie_word_embeddings=False)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0))
        save_model(model, folder)
    return str(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_has_a_lora_or_is_trained_itself_but_not_both(make, make_config, tied):
    start = with_template_tokens(make_config, tied=tied)
    head = {"targets": ["q_proj", "lm_head"]}
    tools = {"tools": str(make.folder / "tools.json"), "data": [str(make.folder / "requests.jsonl")]}
    table = "embed_tokens" if tied else "lm_head"
    with pytest.raises(
        ConfigError, match=rf"rows of \d+ tokens in it are trained too.*\n.*modules_to_save: \[{table}\]"
    ):
        finetune.run(make("tools", head, model=start, **tools), QUIET)
    with pytest.raises(ConfigError, match=r"rows of 1 tokens"):
        finetune.run(make("token", head | {"train_tokens": ["<eos>"]}, model=start), QUIET)
    if tied:
        with pytest.raises(ConfigError, match=r"it is model.embed_tokens, which is trained too"):
            finetune.run(make("whole", head | {"modules_to_save": ["embed_tokens"]}, model=start), QUIET)


@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_head_is_what_is_loaded_and_what_is_merged(make, make_config, monkeypatch, tied):
    start, seen = with_template_tokens(make_config, tied=tied), []
    train = finetune.train

    def and_look(model, run, console):
        summary = train(model, run, console)
        with torch.no_grad():
            seen.append(model(IDS))
        return summary

    monkeypatch.setattr(finetune, "train", and_look)
    config = make("head", {"targets": ["q_proj", "lm_head"], "merge": True}, model=start,
                  training={"precision": "fp32"})  # fmt: skip
    finetune.run(config, QUIET)
    with torch.no_grad():
        for folder in ("adapter", "model"):
            found = load_model(config.output / folder)(IDS)
            torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-4)
        assert (load_model(start)(IDS) - seen[0]).abs().max() > 0.05
    assert leveret.load(config.output / "adapter").chat([{"role": "user", "content": "hello"}], max_tokens=3)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:The new (embeddings|lm_head)")
@pytest.mark.parametrize("adapter", [{}, {"modules_to_save": ["embed_tokens"], "dora": True}])
def test_peft_loads_the_adapter_s_folder_with_its_new_tokens_to_the_same_logits(make, adapter):
    peft = pytest.importorskip("peft", reason="the oracle of this test")
    config = make(adapter=adapter, tools=str(make.folder / "tools.json"), training={"precision": "fp32"})
    finetune.run(config, QUIET)
    folder = config.output / "adapter"
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(Tokenizer.load(folder).vocab_size - 12, Tokenizer.load(folder).vocab_size).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, load_model(folder)(ids), rtol=1e-4, atol=1e-4)


def test_a_prefix_is_learnt_resumed_and_read_wherever_a_model_is_named(make_config, monkeypatch):
    finetune.run(make_config("start", training={"max_steps": 1}), QUIET)  # its model has the template's tokens
    start = str(make_config.folder / "start" / "model")
    adapter = {"method": "prefix", "prefix_tokens": 4}
    training = {"max_steps": 12, "rows_per_step": 1, "micro_batch_rows": 1, "learning_rate": 0.1}
    data = {"data": one_chat(make_config.folder), "training": training}
    whole = make_config("whole", model=start, adapter=adapter, **data)
    killed = make_config("killed", model=start, adapter=adapter, **data)
    finetune.run(whole, QUIET)
    step, calls = loop.optimizer_step, []

    def step_or_die(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(loop, "optimizer_step", step_or_die)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(killed, QUIET)
    finetune.run(killed, QUIET)
    assert hash_tree(killed.output / "adapter") == hash_tree(whole.output / "adapter")
    tensors = load_file(whole.output / "adapter" / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"prompt_embeddings": (4, 2 * 2 * 16)}
    losses = [row["loss"] for row in read_metrics(whole.output / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert leveret.load(whole.output / "adapter").chat([{"role": "user", "content": "hello"}], max_tokens=3)
    with pytest.raises(ConfigError, match="whose rows a prefix cannot train"):
        finetune.run(make_config("new", adapter=adapter), QUIET)


def test_keys_of_the_other_method_are_refused(make_config):
    for adapter in ({"method": "prefix", "rank": 4}, {"method": "prefix", "merge": True}, {"prefix_tokens": 4}):
        with pytest.raises(ConfigError, match="not read with method"):
            make_config(adapter=adapter)


def test_a_whole_model_beside_an_older_adapter_is_told_of(make_config, capsys):
    finetune.run(make_config(adapter={"rank": 2}), Console(quiet=True))
    for _ in range(2):  # also where all is done
        finetune.run(make_config(), Console())
        said = " ".join(capsys.readouterr().err.split())
        assert "run/adapter is of another run than" in said
    finetune.run(make_config("other"), Console())
    assert "another run" not in capsys.readouterr().err


@pytest.mark.parametrize(("adapter", "folders"), [(None, ["model"]), ({"merge": True}, ["adapter", "model"])])
def test_what_comes_of_training_keeps_the_licence_and_the_way_to_sample_of_its_start(make_config, adapter, folders):
    config = make_config(adapter=adapter and {"rank": 4, "alpha": 8} | adapter)
    start = make_config.folder / "base"
    said = json.loads((start / "generation_config.json").read_text())
    (start / "generation_config.json").write_text(json.dumps(said | {"do_sample": True, "temperature": 0.3}))
    (start / "LICENSE").write_text("Apache")
    finetune.run(config, QUIET)
    for folder in folders:
        now = json.loads((config.output / folder / "generation_config.json").read_text())
        assert (now["do_sample"], now["temperature"]) == (True, 0.3)
        assert now["eos_token_id"] != said["eos_token_id"]  # the template's own
        assert (config.output / folder / "LICENSE").read_text() == "Apache"
