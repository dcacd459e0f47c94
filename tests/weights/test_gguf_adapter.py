"""An adapter as a GGUF file: what llama.cpp computes with it is what the merged model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leveret.errors import ShapeMismatch, UnexpectedWeights, WeightsError
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.init import init_weights
from leveret.model.lora import LoraSettings, init_lora, wrap
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.adapter import save_adapter
from leveret.weights.gguf import write_gguf
from leveret.weights.gguf_adapter import unsayable, write_gguf_adapter
from leveret.weights.gguf_file import open_gguf
from leveret.weights.gguf_layout import places, to_file
from leveret.weights.gguf_tokenizer import tokenizer_keys
from leveret.weights.merged import load_merged
from leveret.weights.save import save_model

pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")

FAMILIES = ["mistral", "aquila", "mixtral", "lingowhale"]


def config_of(family: str, **changes: Any) -> ModelConfig:
    settings: dict[str, Any] = {
        "family": family, "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
        "norm_scales_in_float32": family_for(family).norm_scales_in_float32,
        "moe": MoeConfig(num_experts=4, experts_per_token=2) if family == "mixtral" else None,
    }  # fmt: skip
    return ModelConfig(**(settings | changes))


def trained(folder: Path, config: ModelConfig, *, rslora: bool = False, dora: bool = False) -> tuple[Path, Path]:
    """A tiny model, and an adapter on its attention, two of its feed-forward matrices and its head."""
    model = Decoder(config)
    init_weights(model, 0)
    save_model(model, folder / "base")
    settings = LoraSettings(rank=4, alpha=10.0, rslora=rslora, dora=dora)
    fused = config.family == "lingowhale"
    for layer in range(config.num_hidden_layers):
        attention = [f"layers.{layer}.self_attn.{part}_proj" for part in "qkv"]
        groups = [tuple(attention)] if fused else [(name,) for name in attention]
        experts = range(4) if config.moe is not None else ()
        groups += [(f"layers.{layer}.mlp.experts.{expert}.up_proj",) for expert in experts] or [
            (f"layers.{layer}.mlp.down_proj",)
        ]
        for names in [*groups, *([("lm_head",)] if layer == 0 else [])]:
            wrapped = wrap(model, names, settings)
            init_lora(names[0], wrapped, seed=0)
            for module in wrapped:
                torch.nn.init.normal_(module.lora_B, std=0.2)
    save_adapter(model, folder / "adapter", base=str(folder / "base"))
    return folder / "base", folder / "adapter"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rslora", [False, True])
def test_b_times_a_at_the_files_scale_is_the_change_of_the_merged_model(
    rslora: bool, family: str, tmp_path: Path
) -> None:
    config = config_of(family)
    base, adapter = trained(tmp_path, config, rslora=rslora)
    count = write_gguf_adapter(adapter, config, tmp_path / "a.gguf", name="x")
    file = open_gguf(tmp_path / "a.gguf")
    assert (file.keys["general.type"], file.keys["adapter.type"]) == ("adapter", "lora")
    merged, before = load_merged(adapter, base=base)[0].state_dict(), Decoder(config)
    init_weights(before, 0)
    scale = file.keys["adapter.lora.alpha"] / 4
    changed = 0
    for place in places(config):
        if f"{place.name}.lora_a" not in file.tensors:
            continue
        a, b = (np.array(file.tensors[f"{place.name}.lora_{end}"].data) for end in "ab")
        change = scale * b @ a
        after = to_file(place, {name: merged[name] for name in place.parts})
        wanted = after - to_file(place, {name: before.state_dict()[name] for name in place.parts})
        assert np.abs(wanted).max() > 0.1 and np.allclose(change, wanted, atol=2e-5), place.name
        changed += len(place.parts)
    assert changed == count == (15 if family == "mixtral" else 9)


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_the_merged_model_does(family: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle llama-cpp-python is not installed")
    config = config_of(family)
    base, adapter = trained(tmp_path, config)
    tokenizer = train_byte_bpe(["a hare 野兔"] * 8, vocab_size=300, special_tokens=["<s>"], bos_token="<s>")
    write_gguf(base, tmp_path / "m.gguf", "f32", tokenizer_keys(tokenizer, config), name="m")
    write_gguf_adapter(adapter, config, tmp_path / "a.gguf", name="a")
    theirs = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), lora_path=str(tmp_path / "a.gguf"), n_ctx=64, n_threads=1, verbose=False,
        logits_all=True, type_k=0, type_v=0,
    )  # fmt: skip
    ids = [1, 40, 77, 200, 5]
    theirs.eval(ids)
    merged = load_merged(adapter, base=base)[0].eval()
    with torch.inference_mode():
        ours = merged(torch.tensor([ids]))[0].numpy()
    logits = np.asarray(theirs.scores[: len(ids)])
    assert np.abs(logits - ours).max() < 1e-3 * np.abs(ours).max()


def test_what_the_format_cannot_say_is_refused_with_the_way_out(tmp_path: Path) -> None:
    config = config_of("mistral")
    _, adapter = trained(tmp_path, config, dora=True)
    assert unsayable(adapter) == "DoRA's lengths of rows"
    with pytest.raises(WeightsError, match="a GGUF adapter cannot say") as caught:
        write_gguf_adapter(adapter, config, tmp_path / "a.gguf", name="x")
    assert "adapter=merged" in str(caught.value)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    _, adapter = trained(tmp_path, config_of("mistral"))
    with pytest.raises(UnexpectedWeights, match=r"layers\.1"):
        write_gguf_adapter(adapter, config_of("mistral", num_hidden_layers=1), tmp_path / "a.gguf", name="x")
    with pytest.raises(ShapeMismatch, match="the matrix"):
        write_gguf_adapter(adapter, config_of("mistral", vocab_size=400), tmp_path / "a.gguf", name="x")
