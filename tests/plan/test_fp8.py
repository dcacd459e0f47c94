"""Whether FP8 pays: the forecast against what others published and HARE found, and what `leveret plan` says of it."""

from pathlib import Path

import pytest
import torch

from leveret.cli.main import main
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.count import count
from leveret.plan.devices import load_table
from leveret.plan.fp8 import PUBLISHED, Shape, advise, bf16_seconds, fp8_seconds, shapes_of, time_ratio, verdict_on
from leveret.plan.fp8_probe import measured_advice
from leveret.trainer.config import TrainingConfig

TABLE = load_table(None)
HARE = ModelConfig(
    vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
    num_key_value_heads=8,
)  # fmt: skip


def linear(inputs, outputs, **changes):
    return Shape(name="one", inputs=inputs, outputs=outputs, how_many=1, **changes)


def verdicts(config, device, rows):
    training = TrainingConfig(rows_per_step=rows, micro_batch_rows=rows, sequence_length=2048)
    return {each.shape.name: each.verdict for each in advise(config, training, device, TABLE.devices[device])}


@pytest.mark.parametrize(("source", "sizes", "published"), PUBLISHED)
def test_gains_are_those_that_others_published(source, sizes, published):
    tokens, inputs, outputs = sizes
    shape, device = linear(inputs, outputs), TABLE.devices["H100"]
    bf16, fp8 = (time(shape, tokens, device, launch_seconds=0) for time in (bf16_seconds, fp8_seconds))
    assert bf16 / fp8 == pytest.approx(published, rel=0.1)


def test_a_small_linear_loses_and_a_large_one_gains_as_hare_found():
    device = TABLE.devices["H800"]
    small, large = linear(1024, 1024), linear(2048, 5632)
    assert fp8_seconds(small, 1 * 1024, device) > 3 * bf16_seconds(small, 1 * 1024, device)
    assert fp8_seconds(large, 8 * 2048, device) < 0.9 * bf16_seconds(large, 8 * 2048, device)


def test_the_linears_of_a_shape_are_those_of_the_model():
    shapes = shapes_of(HARE)
    numbers = sum(shape.inputs * shape.outputs * shape.how_many for shape in shapes)
    assert numbers == count(HARE).multiplied - HARE.vocab_size * HARE.hidden_size


def test_more_tokens_and_larger_linears_make_it_pay():
    assert set(verdicts(HARE, "H200", 1).values()) & {"no: waits for Python"}
    many = verdicts(HARE, "H200", 16)
    assert many["gate_proj, up_proj"] == many["down_proj"] == "yes"
    assert many["k_proj, v_proj"] == "hardly"
    assert verdicts(HARE, "H100", 16)["k_proj, v_proj"] == "no: casts cost more"


def test_devices_shapes_and_experts_that_cannot_are_told_apart():
    assert set(verdicts(HARE, "A100", 8).values()) == {"no: the device has no FP8"}
    odd = ModelConfig(
        vocab_size=64, hidden_size=2048, intermediate_size=5640, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    assert verdicts(odd, "H100", 8)["down_proj"] == "no: a size is no multiple of 16"
    mixture = ModelConfig(
        vocab_size=64, hidden_size=2048, intermediate_size=5632, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=8, family="mixtral", moe=MoeConfig(num_experts=8, experts_per_token=2),
    )  # fmt: skip
    assert verdicts(mixture, "H100", 8)["down_proj"] == "no: experts are multiplied as a group"


def test_what_is_kept_counts_with_its_time_in_bf16():
    training = TrainingConfig(rows_per_step=16, micro_batch_rows=16, sequence_length=2048)
    assert 0.75 < time_ratio(advise(HARE, training, "H100", TABLE.devices["H100"])) < 0.95
    assert time_ratio(advise(HARE, training, "A100", TABLE.devices["A100"])) == 1


def test_a_plan_says_it_when_asked_or_when_a_stage_trains_so(life, plan):
    assert plan("life.yaml")["pretrain"]["fp8"] == []
    asked = plan("life.yaml", "--fp8", "--devices", "H100", "--devices", "A100")
    assert {row["device"] for row in asked["pretrain"]["fp8"]} == {"H100", "A100"}
    assert asked["serve"]["fp8"] == []
    row = asked["pretrain"]["fp8"][0]
    assert (row["shape"]["inputs"], row["tokens"]) == (64, 4 * 128)
    assert plan("life.yaml", "pretrain.training.fp8={}")["pretrain"]["fp8"]


def test_a_forecast_with_fp8_is_faster_where_it_pays(life, plan):
    shape = "{hidden_size: 2048, intermediate_size: 5632, num_hidden_layers: 4, num_attention_heads: 32}"
    training = "{sequence_length: 2048, max_steps: 10, rows_per_step: 32, micro_batch_rows: 16}"
    Path("big.yaml").write_text(
        f"output: x\ntokenizer: nowhere\ndocuments: [a]\nmodel: {shape}\ntraining: {training}\n"
    )
    words = ("big.yaml", "--command", "pretrain", "--vocab-size", "32000", "--devices", "H200", "--devices", "A100")
    plain, fp8 = (
        {each["device"]: each["tokens_per_second"] for each in plan(*words, *more)["pretrain"]["devices"]}
        for more in ((), ("training.fp8={}",))
    )
    assert 1.05 < fp8["H200"] / plain["H200"] < 1.4
    assert fp8["A100"] == plain["A100"]


def test_the_table_names_linears_and_verdicts(life, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["plan", "life.yaml", "--fp8", "--devices", "H100", "--stages", "pretrain"]) == 0
    shown = capsys.readouterr().out
    assert "FP8, forward and backward of one Linear, 512 tokens" in shown
    assert "gate_proj, up_proj" in shown and "no: waits for Python" in shown


def test_measuring_without_a_gpu_says_so(life, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["plan", "life.yaml", "--fp8", "--measure", "--devices", "H100", "--json"]) == 0
    assert "forecast, not measured" in capsys.readouterr().err


def test_measuring_times_both_formats_of_the_linears_that_can():
    shapes = [linear(32, 16), linear(32, 40), linear(32, 32, kept="no")]
    (found,) = measured_advice(shapes, 48, torch.device("cpu"), "this CPU", seconds=0.01)
    assert found.shape is shapes[0]
    assert found.bf16_seconds > 0 and found.fp8_seconds > 0
    assert found.verdict == verdict_on(found.bf16_seconds, found.fp8_seconds)


@pytest.mark.parametrize(
    ("bf16", "fp8", "said"), [(1.2, 1.0, "yes"), (1.05, 1.0, "hardly"), (0.9, 1.0, "no: casts cost more")]
)
def test_the_verdict_follows_from_the_two_times(bf16, fp8, said):
    assert verdict_on(bf16, fp8) == said
