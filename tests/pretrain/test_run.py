"""Pretraining end to end on a tiny model: what it leaves, what it refuses, and that it is the same every time."""

import json
import math

import pytest
import torch

from leveret.console import Console
from leveret.errors import CheckpointError, ConfigError, DataError
from leveret.paths import hash_tree
from leveret.pretrain.run import run
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.trainer import loop
from leveret.trainer.metrics import read_metrics
from leveret.weights.load import load_model
from leveret.weights.save import save_model
from leveret.weights.tokens import resize_tokens

QUIET = Console(quiet=True)


def test_a_run_leaves_a_model_folder_a_record_and_an_x_ray_and_no_checkpoints(make_config):
    config = make_config()
    result = run(config, QUIET)
    names = {path.name for path in config.output.iterdir()}
    assert names == {"model", "metrics.jsonl", "metrics.html", "outcome.json", "shards", "xray.html"}
    model = load_model(config.output / "model")
    assert model.embed_tokens.weight.dtype == torch.bfloat16
    assert Tokenizer.load(config.output / "model").eos_id == model.config.eos_token_id
    assert 0 < result.summary["bits_per_byte"] < 8
    assert result.summary["validation_loss"] < math.log(model.config.vocab_size)
    assert read_metrics(config.output / "metrics.jsonl")[-1]["step"] == 6


def test_sources_of_one_name_are_each_shown_in_the_x_ray(make_config, texts):
    for name in ("train", "other"):
        (texts / name).mkdir()
        (texts / f"{name}.jsonl").rename(texts / name / "part.jsonl")
    files = [texts / name / "part.jsonl" for name in ("train", "other")]
    run(make_config(documents=[str(file) for file in files]), QUIET)
    page = (texts / "run" / "xray.html").read_text(encoding="utf-8")
    assert all(f"<td>{file} (first documents)" in page for file in files)


def test_a_source_without_a_text_is_named(make_config, texts):
    (texts / "empty.txt").write_text(" \n")
    sources = [str(texts / "train.jsonl"), str(texts / "empty.txt")]
    with pytest.raises(DataError, match=r"empty\.txt: there are no documents"):
        run(make_config(documents=sources), QUIET)
    with pytest.raises(DataError, match=r"empty\.txt: there are no documents"):
        run(make_config(validation=[str(texts / "empty.txt")]), QUIET)


def test_the_same_command_again_does_nothing(make_config, monkeypatch):
    config = make_config()
    first = run(config, QUIET)
    before = hash_tree(config.output)
    monkeypatch.setattr(loop, "optimizer_step", None)
    assert run(config, QUIET).summary == first.summary
    assert hash_tree(config.output) == before


def test_two_runs_and_a_resumed_one_have_equal_weights(make_config, monkeypatch):
    whole, again, killed = make_config("whole"), make_config("again"), make_config("killed")
    run(whole, QUIET)
    run(again, QUIET)
    step = loop.optimizer_step

    def die(*args, **kwargs):
        if kwargs["step"] == 5:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", die)
        with pytest.raises(KeyboardInterrupt):
            run(killed, QUIET)
    assert not (killed.output / "model").exists()
    assert run(killed, QUIET).summary["resumed_from_step"] == 4
    hashes = {hash_tree(config.output / "model") for config in (whole, again, killed)}
    assert len(hashes) == 1


def test_a_run_in_fp8_ends_in_an_ordinary_model_near_that_of_bf16(make_config):
    plain, fp8 = make_config("plain"), make_config("fp8", training={"fp8": {"keep_last_layers": 1}})
    found = [run(config, QUIET).summary["validation_loss"] for config in (plain, fp8)]
    assert found[0] != found[1] == pytest.approx(found[0], rel=0.01)
    models = [load_model(config.output / "model").state_dict() for config in (plain, fp8)]
    assert {name: tensor.dtype for name, tensor in models[0].items()} == {
        name: tensor.dtype for name, tensor in models[1].items()
    }


def test_another_seed_gives_other_weights(make_config):
    one, two = make_config("one"), make_config("two", seed=1)
    run(one, QUIET)
    run(two, QUIET)
    assert hash_tree(one.output / "model") != hash_tree(two.output / "model")


def test_a_finished_run_with_changed_settings_is_trained_anew(make_config):
    run(make_config(), QUIET)
    before = hash_tree(make_config().output / "model")
    run(make_config(training={"learning_rate": 1e-3}), QUIET)
    assert hash_tree(make_config().output / "model") != before


def test_a_half_done_run_with_changed_data_is_refused_and_says_what_changed(make_config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("leveret.pretrain.run.publish", lambda *_, **__: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            run(make_config(), QUIET)
    texts = make_config().documents[0].path
    texts.write_text(texts.read_text() + "\n" + json.dumps({"text": "one more"}))
    with pytest.raises(CheckpointError, match=r"documents\.0\.content: "):
        run(make_config(), QUIET)


def test_held_out_text_that_is_also_trained_on_is_refused(make_config, texts):
    lines = (texts / "train.jsonl").read_text().splitlines()
    with open(texts / "held_out.jsonl", "a") as file:
        file.write("\n" + lines[17])
    with pytest.raises(DataError, match=r"1 held-out documents .* validation document 30 .* training document 17"):
        run(make_config(), QUIET)


def test_an_output_among_the_texts_is_refused(make_config, texts):
    config = make_config(output="in/run", documents=[str(texts)])
    with pytest.raises(ConfigError, match=r"the output .* lies in"):
        run(config, QUIET)
    with pytest.raises(ConfigError, match=r"the output .* lies in"):
        run(make_config(output="in/run", validation=[str(texts)]), QUIET)
    assert not config.output.exists()


def test_a_model_is_taken_further_with_its_own_tokenizer(make_config):
    run(make_config("first"), QUIET)
    first = make_config("first").output / "model"
    further = make_config("further", init_from=str(first), tokenizer=None, model=None)
    result = run(further, QUIET)
    assert read_metrics(further.output / "metrics.jsonl")[0]["loss"] < 5.0 < math.log(320)
    assert result.summary["steps"] == 6


def test_a_start_that_cannot_be_gone_on_with_is_refused(make_config):
    run(make_config("first"), QUIET)
    first = make_config("first").output / "model"
    with pytest.raises(ConfigError, match="at most 128 tokens"):
        run(make_config("long", init_from=str(first), model=None, training={"sequence_length": 129}), QUIET)
    with pytest.raises(ConfigError, match="its own result"):
        run(make_config("first", init_from=str(first), tokenizer=None, model=None), QUIET)


def test_another_tokenizer_may_have_more_tokens_but_no_other_ids(make_config):
    run(make_config("first", training={"max_steps": 1}), QUIET)
    first = make_config("first").output / "model"
    model = load_model(first)
    resize_tokens(model, model.config.vocab_size + 1)
    save_model(model, first)
    more = Tokenizer.load(first)
    more.add_special_tokens(["<more>"])
    more.save(first.parent / "more")
    further = {"init_from": str(first), "model": None, "training": {"max_steps": 1}}
    run(make_config("further", tokenizer=str(first.parent / "more"), **further), QUIET)
    other = train_byte_bpe(["野兔看见了月亮"] * 3, vocab_size=300, special_tokens=["<eos>", "<x>"], eos_token="<eos>")
    other.save(first.parent / "other")
    with pytest.raises(
        DataError, match=r"tokens of the model .* have other ids in the tokenizer .*\n.*leave `tokenizer`"
    ):
        run(make_config("other", tokenizer=str(first.parent / "other"), **further), QUIET)


def test_held_out_text_is_part_of_a_run_where_it_decides_what_is_published(make_config, texts):
    by_validation = {"training": {"max_steps": 2, "evaluate_every_steps": 1, "publish": "best"}}
    runs = {"decides": by_validation, "watches": {"training": {"max_steps": 2}}}
    for name, changes in runs.items():
        run(make_config(name, **changes), QUIET)
    (texts / "held_out.jsonl").write_text(json.dumps({"text": "something else altogether"}))
    found = {}
    for name, changes in runs.items():
        console = Console(quiet=True, log=texts / f"{name}.log")
        run(make_config(name, **changes), console)
        found[name] = "is there already" in (texts / f"{name}.log").read_text()
    assert found == {"decides": False, "watches": True}


@pytest.mark.parametrize(
    "model",
    [
        {"family": "llama", "tie_word_embeddings": False},
        {"family": "aquila"},
        {"family": "lingowhale", "num_key_value_heads": None},
        {"family": "mixtral", "num_experts": 4},
        {"family": "mistral", "sliding_window": 16, "head_dim": 6, "rope_theta": 5e5},
    ],
)
def test_every_family_trains_and_comes_back_as_it_was_described(make_config, model):
    config = make_config(model=model, training={"max_steps": 2})
    run(config, QUIET)
    found = load_model(config.output / "model").config
    assert found.family == model["family"]
    assert found.sliding_window == model.get("sliding_window")
    assert found.rope.theta == model.get("rope_theta", 10000.0)
    assert found.tie_word_embeddings == model.get("tie_word_embeddings", True)


def test_the_sequence_length_decides_how_much_a_step_sees(make_config):
    seen = []
    for name, length in (("short", 32), ("long", 64)):
        config = make_config(name, training={"sequence_length": length, "max_steps": 1})
        seen.append(run(config, QUIET).summary["tokens"])
    assert seen == [4 * 32, 4 * 64]
