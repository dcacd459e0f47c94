"""Packed words lie in memory once, whoever has asked for them, and are given in the file's order all the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leveret.kernels.integer_product import compiled_refusal
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.int4 import Int4Linear
from leveret.precision.linear import QuantizedLinear
from leveret.precision.swap import quantize_linears
from leveret.weights.load import load_model
from leveret.weights.save import save_model


@pytest.fixture(autouse=True)
def kernels() -> None:
    if (refusal := compiled_refusal(in_features=128, group_size=32, device=torch.device("cpu"))) is not None:
        pytest.skip(refusal)


def a_layer(seed: int = 0) -> Int4Linear:
    torch.manual_seed(seed)
    return Int4Linear.from_linear(nn.Linear(128, 72, bias=False).requires_grad_(False), group_size=32)


def one_row() -> Tensor:
    return torch.randn(1, 128, generator=torch.Generator().manual_seed(1)).bfloat16()


def held_bytes(layer: nn.Module) -> int:
    return sum(each.nbytes for each in layer.buffers() if each.dtype == torch.int32 and each.dim() > 1)


@torch.no_grad()
def test_a_kernel_that_was_asked_leaves_one_of_the_two() -> None:
    layer = a_layer()
    stored, wanted = layer.qweight.clone(), layer(one_row().float())
    product = layer(one_row())
    assert layer.held_for_kernels is not None and layer.words is not None
    assert held_bytes(layer) == layer.qzeros.nbytes + 2 * 64 * 128 // 2  # two tiles, the second filled up with zeros
    assert torch.equal(layer.qweight, stored) and torch.equal(layer.state_dict()["qweight"], stored)
    assert "words" not in layer.state_dict() and layer.held_for_kernels is not None
    layer.hold_as_stored()
    assert layer.words is None and held_bytes(layer) == layer.qzeros.nbytes + stored.nbytes
    assert torch.equal(layer(one_row()), product) and torch.equal(layer(one_row().float()), wanted)


@torch.no_grad()
@pytest.mark.parametrize("how", ["load_state_dict", "fill", "assign"])
def test_new_weights_count_whatever_is_held(how: str) -> None:
    layer, other = a_layer(), a_layer(seed=1)
    layer(one_row()), other(one_row())
    if how == "load_state_dict":
        layer.load_state_dict(other.state_dict())
    elif how == "fill":
        layer.fill(other.integers())
    else:
        layer.qweight, layer.scales = other.qweight, other.scales
    assert torch.equal(layer(one_row()), other(one_row()))
    assert torch.equal(layer.dequantize(), other.dequantize())


@torch.no_grad()
def test_a_copy_shares_the_words_and_computes_the_rest_anew() -> None:
    layer = a_layer()
    product = layer(one_row())
    kept = {id(tensor): tensor for tensor in layer.buffers()}
    twin = copy.deepcopy(layer, kept)
    assert twin.words is layer.words and torch.equal(twin(one_row()), product) and twin.words is layer.words


@torch.no_grad()
def test_a_model_that_moves_takes_them_along() -> None:
    model = nn.Sequential(a_layer())
    product, stored = model(one_row()), model[0].qweight
    model.to(torch.bfloat16)
    assert model[0].held_for_kernels is None and torch.equal(model[0].qweight, stored)
    assert torch.equal(model(one_row()), product)


@torch.no_grad()
@pytest.mark.parametrize("family", ["mistral", "lingowhale"])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_file_is_read_straight_into_the_order_of_the_kernels(tmp_path: Path, family: str, ordered: bool) -> None:
    config = ModelConfig(
        family=family, vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = Decoder(config).eval()
    init_weights(model, seed=0)
    storage = GptqStorage(bits=4, group_size=32, symmetric=True)
    quantize_linears(model, storage, search=False)
    if not ordered:  # config.json does not say so, as in files of older programs; g_idx does
        for layer in model.modules():
            if isinstance(layer, QuantizedLinear):
                layer.g_idx = layer.g_idx.flip(0)
    save_model(model, tmp_path / "a", quantization_config=storage.to_dict())
    loaded = load_model(tmp_path / "a", dtype="bfloat16")
    layers = [layer for layer in loaded.modules() if isinstance(layer, QuantizedLinear)]
    assert layers and all(layer.held_for_kernels is not None for layer in layers)
    ids = torch.arange(2).unsqueeze(0)
    model = model.to(torch.bfloat16)
    torch.testing.assert_close(loaded(ids), model(ids), atol=0, rtol=0)
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    save_model(loaded, tmp_path / "b", quantization_config=storage.to_dict())
    save_model(model, tmp_path / "c", quantization_config=storage.to_dict())
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "bc")
    assert first == second
