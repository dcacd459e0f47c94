"""DeepSpeed JSON: every mapping, every disagreement, and nothing that goes missing without a word."""

import json
from pathlib import Path

import pytest

from leveret.config import mistakes, parse_config, rehearsed
from leveret.errors import ConfigError
from leveret.trainer.config import TrainingConfig
from leveret.trainer.deepspeed import read_deepspeed

HARE = {
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 0, "allgather_bucket_size": 2e8, "overlap_comm": True, "reduce_bucket_size": 2e8},
    "gradient_accumulation_steps": 8, "train_micro_batch_size_per_gpu": 16, "gradient_clipping": 1.0,
    "msamp": {"enabled": False, "opt_level": "O2"},
}  # fmt: skip
LINGOWHALE = {
    "bf16": {"enabled": "auto"}, "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto", "gradient_clipping": 0.5,
    "zero_optimization": {
        "stage": 3, "stage3_gather_16bit_weights_on_model_save": True,
        "offload_optimizer": {"device": "cpu", "pin_memory": True}, "offload_param": {"device": "none"},
    },
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def to_file(data):
        path = tmp_path / "ds.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return to_file


def places(path):
    return [line.partition(":")[0] for line in read_deepspeed(path).unmapped]


def test_a_config_of_a_dense_run_is_taken_over_and_the_rest_is_named(write):
    path = write(HARE)
    config = TrainingConfig(deepspeed=path, rows_per_step=1024)
    assert (config.precision, config.max_grad_norm, config.micro_batch_rows) == ("bf16", 1.0, 16)
    assert config.parallel.mode == "ddp"
    assert places(path) == [
        "gradient_accumulation_steps", "msamp.enabled", "msamp.opt_level", "zero_optimization.allgather_bucket_size",
        "zero_optimization.overlap_comm", "zero_optimization.reduce_bucket_size",
    ]  # fmt: skip


def test_a_byte_order_mark_is_passed_over(write):
    assert read_deepspeed(write("\ufeff" + '{"gradient_clipping": 0.5}')).values == {"max_grad_norm": 0.5}


def test_auto_is_left_to_the_training_config(write):
    path = write(LINGOWHALE)
    config = TrainingConfig(deepspeed=path, rows_per_step=48, micro_batch_rows=6, precision="fp32")
    assert (config.rows_per_step, config.micro_batch_rows, config.precision) == (48, 6, "fp32")
    assert (config.parallel.mode, config.parallel.offload, config.parallel.reshard) == ("fsdp", True, True)
    assert config.max_grad_norm == 0.5
    assert places(path) == []


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({"stage": 0}, {"mode": "ddp"}),
        ({"stage": 1}, {"mode": "fsdp", "reshard": False}),
        ({"stage": 2}, {"mode": "fsdp", "reshard": False}),
        ({"stage": 3}, {"mode": "fsdp"}),
        ({"stage": 3, "mics_shard_size": 8}, {"mode": "hsdp", "shard_size": 8}),
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, {"mode": "fsdp", "reshard": False, "offload": True}),
    ],
)
def test_stages_of_zero(write, zero, expected):
    settings = read_deepspeed(write({"zero_optimization": zero}))
    assert settings.values == {"parallel": expected}
    assert settings.unmapped == ()
    TrainingConfig(deepspeed=write({"zero_optimization": zero}))


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (
            {"type": "WarmupLR", "params": {"warmup_max_lr": 3e-4, "warmup_num_steps": 20, "warmup_type": "linear"}},
            {"schedule": "constant", "learning_rate": 3e-4, "warmup_steps": 20},
        ),
        (
            {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 5, "total_num_steps": 50, "warmup_max_lr": 1e-3}},
            {"schedule": "linear", "learning_rate": 1e-3, "warmup_steps": 5, "max_steps": 50,
             "min_learning_rate_ratio": 0.0},
        ),
        (
            {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 5, "total_num_steps": 50, "cos_min_ratio": 0.1}},
            {"schedule": "cosine", "warmup_steps": 5, "max_steps": 50, "min_learning_rate_ratio": 0.1},
        ),
    ],
)  # fmt: skip
def test_schedulers(write, scheduler, expected):
    path = write({"scheduler": scheduler})
    assert read_deepspeed(path).values == expected
    config = TrainingConfig(deepspeed=path)
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"lr": 3e-4}}},
         {"learning_rate": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
        ({"optimizer": {"type": "Adam"}}, {"learning_rate": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0}),
        ({"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}, {"weight_decay": 0.01}),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "weight_decay": "auto"}}},
         {"learning_rate": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}),
        ({"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 5000}}},
         {"schedule": "cosine", "min_learning_rate_ratio": 0.0001, "warmup_steps": 1000, "learning_rate": 2e-3}),
        ({"scheduler": {"type": "WarmupLR"}}, {"learning_rate": 1e-3, "warmup_steps": 1000}),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto", "warmup_max_lr": "auto"}}},
         {"learning_rate": 2e-3, "warmup_steps": 0}),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 3e-4}}, "scheduler": {"type": "WarmupLR"}},
         {"learning_rate": 3e-4}),
    ],
)  # fmt: skip
def test_where_a_section_leaves_a_number_out_it_is_deepspeed_s(write, data, expected):
    class Ours(TrainingConfig):
        learning_rate: float = 2e-3

    path = write(data)
    config = Ours(deepspeed=path)
    assert {key: getattr(config, key) for key in expected} == expected
    named = places(path)
    assert ("scheduler.params.warmup_type" in named) == ("scheduler" in data)
    assert ("scheduler.params.warmup_max_lr" in named) == (len(data) == 2)
    assert Ours(deepspeed=path, betas=(0.8, 0.9), warmup_steps=7, max_steps=5000).betas == (0.8, 0.9)
    if "scheduler" in data:
        assert Ours(deepspeed=path, warmup_fraction=0.1).warmup_steps == 0


def test_optimizer_and_its_numbers(write):
    params = {"lr": 2e-5, "betas": [0.9, 0.98], "eps": 1e-7, "weight_decay": 0.01, "torch_adam": True}
    path = write({"optimizer": {"type": "AdamW", "params": params}, "steps_per_print": 5})
    config = TrainingConfig(deepspeed=path)
    assert (config.learning_rate, config.betas, config.eps, config.weight_decay) == (2e-5, (0.9, 0.98), 1e-7, 0.01)
    assert config.log_every_steps == 5
    assert places(path) == []


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"optimizer": {"type": "Lamb", "params": {"lr": 1}}}, ["optimizer.type", "optimizer.params.lr"]),
        ({"scheduler": {"type": "OneCycle"}}, ["scheduler.type"]),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "log", "warmup_min_lr": 1e-6}}},
         ["scheduler.params.warmup_type", "scheduler.params.warmup_min_lr"]),
        ({"fp16": {"enabled": True, "loss_scale": 0}}, ["fp16.enabled"]),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}},
         ["zero_optimization.offload_param.device", "zero_optimization.offload_param.nvme_path"]),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True, "ratio": 0.3},
                                "offload_param": {"device": "none", "buffer_count": 5}}},
         ["zero_optimization.offload_optimizer.ratio"]),
        ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, ["optimizer.params.adam_w_mode"]),
        ({"flops_profiler": {"enabled": True}, "wall_clock_breakdown": False},
         ["flops_profiler.enabled", "wall_clock_breakdown"]),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_named(write, data, named):
    assert places(write(data)) == named


def test_a_key_that_says_something_else_is_refused_and_the_same_is_not(write):
    path = write({"gradient_clipping": 0.5, "zero_optimization": {"stage": 2}})
    assert TrainingConfig(deepspeed=path, max_grad_norm=0.5).max_grad_norm == 0.5
    (told,) = mistakes(TrainingConfig, {"deepspeed": str(path), "max_grad_norm": 1.0})
    assert "max_grad_norm is 1.0" in told and "gradient_clipping: 0.5" in told
    (told,) = mistakes(TrainingConfig, {"deepspeed": str(path), "parallel": {"mode": "ddp"}})
    assert "parallel.mode is ddp" in told and "zero_optimization.stage: fsdp" in told


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("{", "is not JSON"),
        ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu should be at least 1, not 0"),
        ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 0},
         "gradient_accumulation_steps should be at least 1"),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 50}}}, "default of 1000 is not below"),
        ("[]", "is an object"),
        ('{"steps_per_print": Infinity}', "steps_per_print should be a whole number, not inf"),
        ({"train_batch_size": 8.5}, "train_batch_size should be a whole number, not 8.5"),
        ({"zero_optimization": {"stage": 2.5}}, "stage should be a whole number, not 2.5"),
        ({"bf16": {"enabled": "off"}}, "bf16.enabled should be true or false, not 'off'"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "1e2"}}}, "whole number, not '1e2'"),
        ({"zero_optimization": {"stage": 4}}, "stage should be 0, 1, 2 or 3, not 4"),
        ({"gradient_clipping": "much"}, "gradient_clipping should be a number, not 'much'"),
        ({"train_batch_size": 10, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}, "multiple"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
          "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-4}}}, "disagree about learning_rate"),
    ],
)  # fmt: skip
def test_nonsense_is_an_error_that_names_the_file(write, data, told):
    path = write(data)
    with pytest.raises(ConfigError) as caught:
        parse_config(TrainingConfig, {"deepspeed": str(path)}, source="recipe")
    assert str(path) in str(caught.value) and told in str(caught.value)


@pytest.mark.parametrize(
    ("said", "precision"), [("true", "bf16"), ("False", "fp32"), (False, "fp32"), ("auto", "bf16")]
)
def test_a_switch_may_be_a_text(write, said, precision):
    assert TrainingConfig(deepspeed=write({"bf16": {"enabled": said}})).precision == precision


def test_a_missing_file_is_an_error():
    assert "cannot be read" in mistakes(TrainingConfig, {"deepspeed": "nowhere.json"})[0]


def test_a_written_out_config_reads_back_and_a_rehearsal_needs_no_file(write):
    config = TrainingConfig(deepspeed=write(LINGOWHALE))
    assert TrainingConfig(**config.model_dump()) == config
    small = rehearsed(config)
    assert small.deepspeed is None
    assert small.max_grad_norm == 0.5


def test_no_clipping_is_none(write):
    assert TrainingConfig(deepspeed=write({"gradient_clipping": 0})).max_grad_norm is None


def test_the_path_is_no_part_of_the_identity(write):
    path = write({"gradient_clipping": 0.5})
    assert TrainingConfig(deepspeed=path).identity() == TrainingConfig(max_grad_norm=0.5).identity()
    assert Path(path).exists()
