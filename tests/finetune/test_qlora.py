"""QLoRA: an adapter trained over a base in NF4, against peft over bitsandbytes."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from leveret.config import parse_config
from leveret.console import Console
from leveret.finetune import run as finetune
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.lora import lora_modules
from leveret.precision.nf4 import NF4Linear
from leveret.precision.swap import round_to_nf4
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run as quantize
from leveret.weights.adapter_load import load_adapter
from leveret.weights.load import load_model
from leveret.weights.save import save_model

QUIET = Console(quiet=True)
IDS = torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def both(request, tmp_path):
    """peft's model over bitsandbytes' NF4, and ours, with the same adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("bitsandbytes", reason="the oracle for NF4")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = Decoder(ModelConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1,
    ))  # fmt: skip
    init_weights(model, 0)
    save_model(model.to(request.param), tmp_path / "base")
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=request.param,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=settings, dtype=request.param)
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own, called by peft
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_model(tmp_path / "base")
    round_to_nf4(ours)
    load_adapter(ours, tmp_path / "adapter", rounded=False)
    return ours.train(), theirs.train(), request.param


def test_logits_and_gradients_are_those_of_peft_over_bitsandbytes(both):
    ours, theirs, dtype = both
    noise = 1e-5 if dtype == torch.float32 else 0.02
    for module in lora_modules(ours).values():
        assert isinstance(module.base, NF4Linear)
        module.lora_A.requires_grad_()
        module.lora_B.requires_grad_()
    mine, other = ours(IDS), theirs(IDS).logits
    assert distance(mine, other) < noise
    for logits in (mine, other):
        torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 320).float(), IDS[:, 1:].reshape(-1)).backward()
    gradients = {name: each.grad for name, each in theirs.named_parameters() if "lora_" in name}
    for name, module in lora_modules(ours).items():
        for matrix in ("lora_A", "lora_B"):
            wanted = gradients[f"base_model.model.model.{name}.{matrix}.default.weight"]
            assert distance(getattr(module, matrix).grad, wanted) < noise * (1 if dtype == torch.float32 else 3), name


def distance(ours, theirs):
    return (ours.float() - theirs.float()).norm() / theirs.float().norm()


def test_the_matrices_are_rounded_and_only_the_adapter_is_trained_and_saved(make_config, capsys):
    config = make_config("q", adapter={"rank": 4, "base": "nf4"})
    finetune.run(config, Console())
    assert "14 matrices are rounded to NF4" in capsys.readouterr().err
    plain = make_config("p", adapter={"rank": 4})
    finetune.run(plain, QUIET)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (each.output / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for each in (config, plain)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert sorted(path.name for path in (config.output / "adapter").glob("*.safetensors")) == [
        "adapter_model.safetensors"
    ]


def test_a_base_that_was_stored_in_nf4_trains_the_same_adapter(make_config):
    folder = make_config.folder
    stored = {"model": str(folder / "base"), "output": str(folder / "nf4"), "method": "nf4"}
    quantize(parse_config(QuantizeConfig, stored, source="test"), QUIET)
    in_memory = make_config("a", adapter={"rank": 4, "base": "nf4"})
    from_files = make_config("b", adapter={"rank": 4}, model=str(folder / "nf4"))
    for config in (in_memory, from_files):
        finetune.run(config, QUIET)
    first, second = (
        load_file(config.output / "adapter" / "adapter_model.safetensors") for config in (in_memory, from_files)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
