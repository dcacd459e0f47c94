"""`leveret plan`: every stage of a recipe, what is missing said and not guessed, and no torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leveret.cli.main import main
from leveret.data.files import look_of
from leveret.kernels import dense
from leveret.model.config import ModelConfig
from leveret.model.count import count, flops_per_token
from leveret.model.families import family_for
from leveret.model.lora_rules import shapes_of
from leveret.plan.config import PlanConfig
from leveret.plan.devices import BUILT_IN, load_table

SHAPE = ModelConfig(
    vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip


def test_a_model_that_an_earlier_stage_will_make_is_known_from_that_stage(life, plan):
    stages = plan("life.yaml")
    for name in ("pretrain", "finetune", "quantize", "serve"):
        assert stages[name]["parameters"]["total"] == count(SHAPE).total, name
    assert stages["pretrain"]["flops_per_token"] == flops_per_token(SHAPE, 128, training=True)
    assert stages["serve"]["memory"]["weights"] < stages["finetune"]["memory"]["weights"], "4 bits after quantize"


def test_a_merged_model_is_like_the_first_but_for_stacked_layers(life, plan):
    recipe = (life / "life.yaml").read_text(encoding="utf-8").partition("  - quantize")[0]
    mix = '  - merge: {models: ["@finetune/model", "@pretrain/model"]}\n  - serve: {model: "@merge"}\n'
    (life / "mix.yaml").write_text(recipe + mix, encoding="utf-8")
    assert plan("mix.yaml")["serve"]["parameters"]["total"] == count(SHAPE).total
    stack = mix.replace("{models:", "{method: passthrough, layers: [[0, 2], [1, 2]], models:")
    (life / "mix.yaml").write_text(recipe + stack, encoding="utf-8")
    deeper = dataclasses.replace(SHAPE, num_hidden_layers=3)
    assert plan("mix.yaml")["serve"]["parameters"]["total"] == count(deeper).total


def test_steps_and_tokens_follow_from_the_config_or_the_size_of_the_files(life, plan):
    stages = plan("life.yaml")
    assert (stages["pretrain"]["steps"], stages["pretrain"]["tokens"]) == (100, 100 * 8 * 128)
    rows = 2 * (40_000 // 4 // 64)
    assert (stages["finetune"]["steps"], stages["finetune"]["tokens"]) == (rows / 4, rows * 64)
    assert "tokens estimated: 4 bytes of a file for each" in stages["finetune"]["notes"]


def test_what_cannot_be_known_is_said_and_has_no_time(life, plan):
    Path("samples.jsonl").unlink()
    stage = plan("life.yaml")["finetune"]
    assert stage["tokens"] is None and stage["devices"][0]["seconds"] is None
    assert stage["devices"][0]["tokens_per_second"] > 0
    assert any("samples.jsonl is not there yet" in note for note in stage["notes"])
    assert any("give --tokens" in note for note in stage["notes"])
    given = plan("life.yaml", "--tokens", "64000")["finetune"]
    assert given["tokens"] == 2 * 64000 and given["devices"][0]["seconds"] > 0


def test_a_model_that_nothing_describes_is_not_guessed(life, plan):
    Path("one.yaml").write_text("output: x\nmodel: somebody/model-7b\ndata: [samples.jsonl]\n")
    stage = plan("one.yaml", "--command", "finetune")["finetune"]
    assert "parameters" not in stage and stage["devices"] == []
    assert "somebody/model-7b is no folder with a config.json" in stage["notes"][0]


def test_a_tokenizer_that_is_not_there_asks_for_the_vocabulary(life, plan):
    Path("one.yaml").write_text("output: x\ntokenizer: nowhere\ndocuments: [samples.jsonl]\n")
    assert "give --vocab-size" in plan("one.yaml", "--command", "pretrain")["pretrain"]["notes"][0]
    known = plan("one.yaml", "--command", "pretrain", "--vocab-size", "5000")["pretrain"]
    assert known["parameters"]["total"] > 0


def shards_of(text: Path, tokens: int) -> None:
    """As a run of life.yaml leaves them that has read `text`."""
    shards = Path("runs/life/pretrain/shards/train-0")
    shards.mkdir(parents=True)
    (shards / "index.json").write_text(json.dumps({"format": 1, "shards": ["a", "b"], "source_look": look_of(text)}))
    for name, each in (("a", tokens - 34), ("b", 34)):
        (shards / f"{name}.json").write_text(json.dumps({"num_tokens": each}))


def test_shards_of_an_earlier_run_are_counted_instead_of_estimated(life, plan):
    shards_of(Path("samples.jsonl"), 1234)
    own = ("pretrain.training.max_steps=null", "pretrain.documents=[samples.jsonl]")
    stage = plan("life.yaml", *own)["pretrain"]
    assert stage["tokens_in_files"] == 1234 and "tokens as tokenized" in stage["notes"]
    Path("samples.jsonl").write_text("x" * 8000)
    stage = plan("life.yaml", *own)["pretrain"]
    assert stage["tokens_in_files"] == 2000, "the shards are of what was there before"


def test_rows_named_in_exclude_rows_are_not_counted_and_records_are_said_to_be(life, plan):
    shards_of(Path("samples.jsonl"), 128 * 100)
    once = (
        "pretrain.training.max_steps=null", "pretrain.training.num_epochs=1", "pretrain.documents=[samples.jsonl]",
    )  # fmt: skip
    excluded = 'pretrain.exclude_rows=["train-0, row 3", "train-0, row 9", "text.txt"]'
    whole, stage = plan("life.yaml", *once)["pretrain"], plan("life.yaml", *once, excluded)["pretrain"]
    assert (whole["tokens_in_files"], stage["tokens_in_files"]) == (100 * 128, 98 * 128)
    assert "2 rows named in exclude_rows are not counted" in stage["notes"]
    assert any(note.startswith("1 records named in exclude_rows may be counted still") for note in stage["notes"])


def test_time_cost_and_rate_follow_the_formula(life, plan):
    device = load_table(None).devices["A100"]
    stage = plan("life.yaml", "--devices", "A100")["pretrain"]
    (row,) = stage["devices"]
    step = 8 * 128 * stage["flops_per_token"] / (312e12 * device.utilization)
    update = count(SHAPE).total * (16 + 10 + 4) / (1e9 * device.bandwidth_gb_s)
    assert row["seconds"] == pytest.approx(100 * (step + update))
    assert row["dollars"] == pytest.approx(row["seconds"] / 3600 * device.dollars_per_hour)
    assert row["tokens_per_second"] == pytest.approx(8 * 128 / (step + update))


def test_more_devices_are_faster_and_hold_less(life, plan):
    one, eight = (
        plan("life.yaml", "pretrain.training.rows_per_step=512", "--devices", "H100", "--num-devices", number)[
            "pretrain"
        ]["devices"][0]
        for number in ("1", "8")
    )
    assert one["seconds"] / eight["seconds"] == pytest.approx(8 * 0.9, rel=0.02)


def test_counting_choices_before_a_step_shows_in_arithmetic(life, plan):
    def flops(*settings):
        mixture = ("pretrain.model.family=mixtral", "pretrain.model.num_experts=4")
        return plan("life.yaml", *mixture, *settings)["pretrain"]["flops_per_token"]

    step, whole = "pretrain.training.router_balance=step", "pretrain.training.micro_batch_rows=8"
    plain = flops()
    assert flops(whole) == plain == flops(whole, step)
    assert 0.1 < (flops(step) - plain) / plain < 1 / 3  # all of forward but the head


def test_recomputation_and_lean_optimizers_show_in_memory_and_arithmetic(life, plan):
    plain = plan("life.yaml")["pretrain"]
    recomputed = plan("life.yaml", "pretrain.training.recompute=layers")["pretrain"]
    assert recomputed["memory"]["activations"] < plain["memory"]["activations"]
    layers_again = flops_per_token(SHAPE, 128, training=False) - 2 * SHAPE.vocab_size * SHAPE.hidden_size
    assert recomputed["flops_per_token"] - plain["flops_per_token"] == pytest.approx(layers_again)
    lean = plan(
        "life.yaml", "pretrain.training.optimizer=adamw_8bit", "pretrain.training.stochastic_rounding=true",
        "pretrain.training.optimizer_in_backward=true", "pretrain.training.max_grad_norm=null",
        "pretrain.training.micro_batch_rows=8",
    )["pretrain"]  # fmt: skip
    assert "fp32 masters" not in lean["memory"] and "gradients" not in lean["memory"]
    assert lean["memory"]["optimizer averages"] < 0.26 * plain["memory"]["optimizer averages"]


def test_an_adapter_shows_in_memory_and_arithmetic(life, plan):
    whole = plan("life.yaml")["finetune"]
    thin = plan("life.yaml", "finetune.adapter.rank=2")["finetune"]
    trained = 2 * sum(inputs + outputs for name, (inputs, outputs) in shapes_of(SHAPE).items() if name != "lm_head")
    assert thin["parameters"] == whole["parameters"] | {"trained": trained}
    assert thin["flops_per_token"] == whole["flops_per_token"] - 2 * count(SHAPE).multiplied + 6 * trained
    assert thin["memory"]["fp32 masters"] == 4 * trained
    assert thin["memory"]["weights"] == whole["memory"]["weights"] + 2 * trained


def test_a_base_in_nf4_shows_in_memory(life, plan):
    whole = plan("life.yaml", "finetune.adapter.rank=2")["finetune"]["memory"]
    four = plan("life.yaml", "finetune.adapter.rank=2", "finetune.adapter.base=nf4")["finetune"]["memory"]
    inside = count(SHAPE).total - count(SHAPE).embedding
    assert whole["weights"] - four["weights"] == pytest.approx(inside * (2 - 4.127 / 8), rel=0.01)
    assert whole["activations"] == four["activations"]
    stored = plan("life.yaml", "quantize.method=nf4", "quantize.bits=4")["serve"]["memory"]
    assert stored["weights"] == pytest.approx(count(SHAPE).embedding * 2 + inside * 4.127 / 8, rel=0.01)


def test_what_a_server_changes_as_it_loads_shows_in_memory_and_speed(life, plan):
    numbers = count(SHAPE)
    folder = Path("stored")
    folder.mkdir()
    folder.joinpath("config.json").write_text(
        json.dumps(family_for("mistral").config_to_hf(SHAPE) | {"torch_dtype": "float32"})
    )
    Path("one.yaml").write_text("model: stored\nmax_concurrent_requests: 2\n")

    def served(*words):
        stage = plan("one.yaml", "--command", "serve", "--devices", "A100", *words)["serve"]
        return stage["memory"], stage["devices"][0]["tokens_per_second"]

    stored, pace = served()
    assert stored["weights"] == 4 * numbers.total, "as stored"
    halved, twice = served("dtype=bfloat16")
    assert halved["weights"] == 2 * numbers.total and twice == pytest.approx(2 * pace)
    assert served("quantize=int8")[0]["weights"] == 4 * numbers.embedding + (numbers.total - numbers.embedding)
    assert served("max_model_len=16")[0]["KV cache, full"] == 16 / SHAPE.context_tokens * stored["KV cache, full"]
    assert served("engine.cache_memory_mib=1", "max_concurrent_requests=32")[0]["KV cache, full"] == 1 << 20


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_config_of_a_model_is_named(life, capsys, content):
    Path("broken").mkdir()
    Path("broken/config.json").write_text(content)
    Path("one.yaml").write_text("model: broken\n")
    assert main(["plan", "one.yaml", "--command", "serve"]) == 3
    assert "error: broken/config.json: " in capsys.readouterr().err


def test_a_base_that_is_rounded_is_whole_while_it_is_loaded_on_a_cpu(life, plan):
    small = ["finetune.adapter.rank=1", "finetune.training.sequence_length=8", "finetune.training.rows_per_step=1",
             "finetune.training.micro_batch_rows=1", "pretrain.model.num_hidden_layers=64"]  # fmt: skip
    deep = count(dataclasses.replace(SHAPE, num_hidden_layers=64))
    plain = plan("life.yaml", *small)["finetune"]["memory"]
    rounded = plan("life.yaml", *small, "finetune.adapter.base=nf4")["finetune"]["memory"]
    assert "loading, before rounding" not in plain
    assert sum(rounded.values()) == pytest.approx(2 * deep.total) and rounded["loading, before rounding"] > 0


def test_a_table_of_one_s_own_adds_and_replaces_devices(life, plan):
    Path("mine.yaml").write_text(
        "usable_memory: 0.5\ndevices:\n  A100: {memory_gb: 1, bf16_tflops: 1, fp32_tflops: 1, bandwidth_gb_s: 1, "
        "utilization: 1, read_share: 1, dollars_per_hour: 1}\n"
    )
    mine, built_in = load_table(Path("mine.yaml")), load_table(None)
    assert mine.devices["A100"].memory_gb == 1 and mine.usable_memory == 0.5
    assert mine.devices["H100"] == built_in.devices["H100"]
    assert mine.parallel_utilization == built_in.parallel_utilization
    assert set(built_in.devices) >= {"H100", "H200", "A100", "H800", "4090", "CPU"}
    assert "ASSUMPTION" in BUILT_IN.read_text()


def test_what_fits_nowhere_is_said(life, plan, capsys):
    Path("mine.yaml").write_text(
        "devices:\n  tiny: {memory_gb: 0.001, bf16_tflops: 1, fp32_tflops: 1, bandwidth_gb_s: 1, utilization: 1, "
        "read_share: 1, dollars_per_hour: 1}\n"
    )
    (row,) = plan("life.yaml", "--device-table", "mine.yaml", "--devices", "tiny")["pretrain"]["devices"]
    assert row["devices"] is None and row["seconds"] is None
    main(["plan", "life.yaml", "--device-table", "mine.yaml", "--devices", "tiny"])
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "H10"], "did you mean H100"),
        (["--stages", "pretain"], "did you mean pretrain"),
        (["--command", "pretain"], "did you mean pretrain"),
        (["--measure", "--devices", "H100"], "add --devices CPU"),
        (["pretrain.training.max_step=3"], "max_steps"),
    ],
)
def test_mistakes_are_named(life, words, said, capsys):
    assert main(["plan", "life.yaml", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_tables_name_every_stage_and_repeat_the_assumptions(life, capsys):
    assert main(["plan", "life.yaml"]) == 0
    page = capsys.readouterr().out
    assert "pretrain: memory on one device" in page and "KV cache, full" in page
    assert "Not forecast: prepare, tokenizer" in page
    assert "Assumed: utilization H100 0.42" in page


def test_comparison_puts_what_was_measured_beside_the_forecast(life, plan, capsys):
    folder = Path("runs/life/pretrain")
    folder.mkdir(parents=True)
    figures = {
        "steps": 100,
        "resumed_from_step": 50,
        "seconds": 7.0,
        "tokens_per_second": 1000,
        "peak_memory_bytes": 10**9,
    }
    (folder / "outcome.json").write_text(json.dumps({"identity": {}, "figures": figures}))
    stage = plan("life.yaml", "--compare")["pretrain"]
    found = {row["figure"]: row for row in stage["comparison"]}
    cpu = next(row for row in stage["devices"] if row["device"] == "CPU")
    assert found["tokens per second"]["forecast"] == cpu["tokens_per_second"]
    assert found["seconds of steps"]["forecast"] == pytest.approx(cpu["seconds"] / 2), "half was done before"
    assert found["seconds of steps"]["ratio"] == pytest.approx(7.0 / (cpu["seconds"] / 2))
    assert found["peak memory, bytes"]["measured"] == 10**9
    main(["plan", "life.yaml", "--compare"])
    assert "forecast and measured" in capsys.readouterr().out


@pytest.mark.parametrize("resumed", [0, 10])
def test_a_run_that_stopped_early_is_compared_by_the_steps_it_made(life, plan, resumed):
    folder = Path("runs/life/pretrain")
    folder.mkdir(parents=True)
    figures = {"steps": 100, "stopped_early_after_step": 20, "resumed_from_step": resumed, "seconds": 7.0}
    (folder / "outcome.json").write_text(json.dumps({"identity": {}, "figures": figures}))
    stage = plan("life.yaml", "--compare")["pretrain"]
    cpu = next(row for row in stage["devices"] if row["device"] == "CPU")
    (seconds,) = (row for row in stage["comparison"] if row["figure"] == "seconds of steps")
    assert seconds["forecast"] == pytest.approx(cpu["seconds"] * (20 - resumed) / 100)


@pytest.mark.parametrize("content", ["[]", '{"figures": []}', "{"])
def test_a_note_that_is_none_is_not_compared(life, capsys, content):
    folder = Path("runs/life/pretrain")
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(content)
    assert main(["plan", "life.yaml", "--compare"]) == 0
    assert "nothing to compare" in capsys.readouterr().err


def test_nothing_to_compare_is_said(life, capsys):
    assert main(["plan", "life.yaml", "--compare"]) == 0
    assert "nothing to compare" in capsys.readouterr().err


def test_planning_loads_no_torch(life):
    code = "import sys; from leveret.cli.main import main; main(['plan', 'life.yaml']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=life)
    assert done.stdout.splitlines()[-1] == "False"


def test_measuring_replaces_the_cpu_of_the_table(life, plan, monkeypatch):
    monkeypatch.setattr("leveret.plan.probe._SECONDS", 0.0)
    monkeypatch.setattr("leveret.plan.probe._SIDE", 128)
    measured = plan("life.yaml", "--measure", "--devices", "CPU")["pretrain"]["devices"][0]
    assert (
        measured["tokens_per_second"]
        != plan("life.yaml", "--devices", "CPU")["pretrain"]["devices"][0]["tokens_per_second"]
    )


def test_what_is_timed_is_the_product_that_trains(life, plan, monkeypatch):
    monkeypatch.setattr("leveret.plan.probe._SECONDS", 0.0)
    monkeypatch.setattr("leveret.plan.probe._SIDE", 128)
    timed = []
    real = dense.matmul
    monkeypatch.setattr(dense, "matmul", lambda *given, **named: timed.append(given[0].dtype) or real(*given, **named))
    plan("life.yaml", "--measure", "--devices", "CPU")
    assert set(timed) == {torch.bfloat16, torch.float32}


def test_the_switch_is_called_json():
    assert PlanConfig(recipe=Path("x"), as_json=True).as_json
