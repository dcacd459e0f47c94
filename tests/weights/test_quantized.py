"""A quantized directory is saved and loaded with the same strictness, fused projections and experts included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from leveret.errors import MissingWeights
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.swap import quantize_linears
from leveret.weights import load
from leveret.weights.load import load_model
from leveret.weights.save import save_model


def quantized(family: str, bits: int) -> tuple[Decoder, GptqStorage]:
    config = ModelConfig(
        family=family, vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, moe=MoeConfig(num_experts=2) if family == "mixtral" else None,
    )  # fmt: skip
    model = Decoder(config).eval()
    init_weights(model, seed=0)
    storage = GptqStorage(bits=bits, group_size=16, symmetric=True)
    quantize_linears(model, storage, search=False)
    return model, storage


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ["mistral", "mixtral", "lingowhale"])
@torch.no_grad()
def test_it_comes_back_to_the_bit(family: str, bits: int, tmp_path: Path) -> None:
    model, storage = quantized(family, bits)
    save_model(model, tmp_path, quantization_config=storage.to_dict())
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["bits"] == bits
    loaded = load_model(tmp_path)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and "layers.0.self_attn.q_proj.qweight" in ours
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    ids = torch.arange(12).unsqueeze(0)
    torch.testing.assert_close(loaded(ids), model(ids), atol=1e-6, rtol=0)


def test_another_dtype_leaves_the_quantized_tensors_alone(tmp_path: Path) -> None:
    model, storage = quantized("mistral", 4)
    save_model(model, tmp_path, quantization_config=storage.to_dict())
    loaded = load_model(tmp_path, dtype="bf16")
    assert loaded.norm.weight.dtype == torch.bfloat16
    assert loaded.state_dict()["layers.0.mlp.up_proj.scales"].dtype == torch.float16


def test_a_full_precision_directory_that_claims_to_be_quantized_is_refused(directory: Path) -> None:
    values = json.loads((directory / "config.json").read_text())
    values["quantization_config"] = GptqStorage(bits=4, group_size=16, symmetric=True).to_dict()
    (directory / "config.json").write_text(json.dumps(values))
    with pytest.raises(MissingWeights, match="qweight"):
        load_model(directory)


def test_the_product_is_chosen_again_where_the_weights_came_to_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory it is chosen for a CPU."""
    model, storage = quantized("llama", 4)
    save_model(model, tmp_path, quantization_config=storage.to_dict())
    found: list[bool] = []
    monkeypatch.setattr(load, "choose_product", lambda model: found.append(model.embed_tokens.weight.is_meta))
    load_model(tmp_path)
    assert not found, "for a CPU it was right"
    fill = load._fill
    monkeypatch.setattr(load, "as_device", lambda device: torch.device("cuda", 0))
    monkeypatch.setattr(load, "_fill", lambda *arguments: fill(*arguments[:-1], torch.device("cpu")))
    load_model(tmp_path, device="cuda:0")
    assert found == [False]
