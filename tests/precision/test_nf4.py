"""NF4Linear: the products, and files that bitsandbytes and transformers read and write."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from leveret.errors import ConfigError, CorruptedFile
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.precision import nf4
from leveret.precision.nf4 import NF4Linear
from leveret.precision.nf4_layout import Nf4Storage
from leveret.precision.swap import read_storage, round_to_nf4
from leveret.weights.load import load_model
from leveret.weights.save import save_model

IDS = torch.randint(320, (2, 9), generator=torch.Generator().manual_seed(1))


def bitsandbytes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("bitsandbytes", reason="bitsandbytes is the oracle for NF4")


def linear(inputs=128, outputs=192, *, bias=False):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias)


def tiny(dtype=torch.bfloat16, **changes):
    settings = {
        "family": "mistral", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
    }  # fmt: skip
    model = Decoder(ModelConfig(**(settings | changes)))
    init_weights(model, 0)
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_the_matrix_written_out(dtype, bias):
    layer = NF4Linear.from_linear(linear(bias=bias), Nf4Storage())
    x = torch.randn(3, 5, 128, dtype=dtype, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y, wanted = layer(x), nn.functional.linear(other, layer.dequantize(dtype))
    wanted = wanted if layer.bias is None else wanted + layer.bias.to(dtype)
    slope = torch.randn_like(y)
    y.backward(slope)
    wanted.backward(slope)
    assert torch.equal(y, wanted) and y.dtype == dtype
    assert torch.equal(x.grad, other.grad)


def test_a_large_matrix_is_multiplied_by_in_parts(monkeypatch):
    layer = NF4Linear.from_linear(linear(100, 300), Nf4Storage())
    x, slope = torch.randn(7, 100), torch.randn(7, 300)
    whole = layer.multiply(x), layer.multiply_back(slope)
    monkeypatch.setattr(nf4, "PART_BYTES", 100 * 4 * 64)
    assert len(layer._parts(torch.float32)) == 5
    torch.testing.assert_close((layer.multiply(x), layer.multiply_back(slope)), whole)
    assert max(piece.numel() for piece in layer.scratch._pieces.values()) == 300 * 100  # of the first products


def test_layers_of_a_model_share_one_piece_of_memory_and_keep_nothing_written_out():
    model = tiny()
    names = round_to_nf4(model)
    layers = [model.get_submodule(name) for name in names]
    assert len(names) == 14 and "lm_head" not in names
    hidden = model(IDS)
    hidden.sum().backward()
    scratch = {id(layer.scratch) for layer in layers}
    pieces = layers[0].scratch._pieces
    assert len(scratch) == 1 and [piece.numel() for piece in pieces.values()] == [128 * 64]
    stored = sum(buffer.nbytes for layer in layers for buffer in layer.buffers())
    matrices = sum(layer.shape.numel() for layer in layers)
    assert stored < matrices * 0.55 + len(layers) * 1400  # the code books, which the layout has in each layer


def test_scales_stay_as_they_are_when_a_model_changes_its_dtype_or_is_copied():
    layer = NF4Linear.from_linear(linear(), Nf4Storage())
    before = layer.dequantize()
    assert torch.equal(copy.deepcopy(layer).to(torch.bfloat16).dequantize(), before)


def test_the_tensors_of_a_layer_are_those_of_bitsandbytes():
    bnb = bitsandbytes()
    weight = linear().weight.detach().to(torch.bfloat16)
    ours = NF4Linear(128, 192, storage=Nf4Storage())
    ours.fill(weight)
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    wanted = {"weight": packed, **{f"weight.{name}": each for name, each in state.as_dict(packed=True).items()}}
    got = {name.replace("_", ".", 1): tensor for name, tensor in ours.state_dict().items()}
    got["weight.quant_state.bitsandbytes__nf4"] = got.pop("weight.quant_state")
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def written(request, tmp_path):
    model = tiny(request.param)
    round_to_nf4(model)
    save_model(model, tmp_path, quantization_config=Nf4Storage().to_dict())
    return model, tmp_path


def test_a_written_model_is_read_back_to_the_bit(written):
    model, folder = written
    read = load_model(folder)
    assert torch.equal(read(IDS), model(IDS))
    again = folder / "again"
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    save_model(read, again, quantization_config=read_storage(config).to_dict())
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_transformers_with_bitsandbytes_reads_it_and_gives_the_same_logits(written):
    bitsandbytes()
    from transformers import AutoModelForCausalLM

    model, folder = written
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    theirs.train()  # in evaluation it repacks weights for its kernel of one token
    layer = theirs.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == "Linear4bit"
    x = torch.randn(3, 64, dtype=model.embed_tokens.weight.dtype, requires_grad=True)
    torch.testing.assert_close(layer(x), model.layers[0].self_attn.q_proj(x), rtol=2e-2, atol=2e-2)
    got, wanted = model(IDS).float(), theirs(IDS).logits.float()
    assert (got - wanted).norm() / wanted.norm() < 0.02  # theirs multiplies in bf16


@pytest.mark.parametrize("double", [True, False])
def test_what_transformers_wrote_with_bitsandbytes_is_read(tmp_path, double):
    bitsandbytes()
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = tiny()
    save_model(model, tmp_path / "whole")
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=settings, dtype="bfloat16")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    round_to_nf4(model, double_quantization=double)
    assert torch.equal(ours(IDS), model(IDS))
    if double:
        save_model(model, tmp_path / "ours", quantization_config=Nf4Storage().to_dict())
        mine, other = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_other_formats_of_bitsandbytes_are_refused_by_name():
    with pytest.raises(ConfigError, match="fp4"):
        read_storage({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"})
    with pytest.raises(ConfigError, match="8 bits"):
        read_storage({"quant_method": "bitsandbytes", "load_in_8bit": True})


def test_a_state_of_another_matrix_is_refused():
    layer = NF4Linear.from_linear(linear(128, 192), Nf4Storage())
    layer.weight_quant_state = NF4Linear.from_linear(linear(192, 128), Nf4Storage()).weight_quant_state
    with pytest.raises(CorruptedFile, match="shape"):
        layer.dequantize()
