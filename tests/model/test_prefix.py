"""A prefix is peft's to the logits, survives the cache and packing, and is all that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from leveret.engine.engine import Engine
from leveret.engine.request import Request, SamplingParams
from leveret.errors import ConfigError, ShapeMismatch
from leveret.model.cache import KVCache
from leveret.model.config import ModelConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.prefix import add_prefix, prefixes_of
from leveret.weights.adapter import save_adapter
from leveret.weights.load import load_model
from leveret.weights.merged import load_merged
from leveret.weights.save import save_model

IDS = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(1))


def make_base(folder: Path, **changes: Any) -> Path:
    sizes = {
        "family": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    model = Decoder(ModelConfig(**sizes | changes))
    init_weights(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    save_model(model, folder)
    return folder


def with_prefix(base: Path, tokens: int = 5) -> Decoder:
    model = load_model(base)
    add_prefix(model, tokens, seed=0)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.prefix.mul_(50)
    return model


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("theta", [10000.0, 50.0])
def test_logits_are_those_of_peft_both_ways(tmp_path: Path, theta: float) -> None:
    peft = pytest.importorskip("peft", reason="the oracle of this test")
    transformers = pytest.importorskip("transformers", reason="the oracle of this test")
    base = make_base(tmp_path / "base", rope=RopeConfig(theta=theta))
    ours = with_prefix(base)
    assert (ours(IDS) - load_model(base)(IDS)).norm() > 0.1 * ours(IDS).norm()
    save_adapter(ours, tmp_path / "ours", base=str(base))
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "ours").eval()
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS), rtol=1e-4, atol=1e-4)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    made = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    made.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(
        load_model(base, adapter=tmp_path / "theirs")(IDS), made(IDS).logits, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 4])
def test_the_cache_and_packed_documents_see_the_same_prefix(tmp_path: Path, window: int | None) -> None:
    model = with_prefix(make_base(tmp_path / "base", family="mistral", sliding_window=window))
    whole = model(IDS)
    cache = KVCache(model.config, 2, 12, torch.float32)
    parts = [model(piece, cache=cache) for piece in (IDS[:, :5], IDS[:, 5:6], IDS[:, 6:])]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    documents = torch.arange(2).repeat_interleave(12).unsqueeze(0)
    places = torch.arange(12).repeat(2).unsqueeze(0)
    packed = model(IDS.view(1, 24), document_ids=documents, positions=places)
    torch.testing.assert_close(packed.view(whole.shape), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_generation_reads_the_prefix(tmp_path: Path) -> None:
    model = with_prefix(make_base(tmp_path / "base")).bfloat16().eval()
    (done,) = Engine(model).generate([Request(prompt_ids=(1, 2, 3), params=SamplingParams(max_tokens=6))])
    ids = [1, 2, 3]
    for _ in range(6):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert list(done.ids) == ids[3:]


def test_only_the_prefix_is_trained(tmp_path: Path) -> None:
    model = with_prefix(make_base(tmp_path / "base"))
    model(IDS).square().mean().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"layers.{layer}.self_attn.prefix" for layer in range(2)}
    assert all(prefix.shape == (5, 2 * 2 * 8) for prefix in prefixes_of(model))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    save_adapter(with_prefix(base), tmp_path / "prefix", base=str(base))
    with pytest.raises(ConfigError, match="cannot be merged"):
        load_merged(tmp_path / "prefix")
    with pytest.raises(ShapeMismatch, match="is expected"):
        load_model(make_base(tmp_path / "deeper", num_hidden_layers=3), adapter=tmp_path / "prefix")
    dynamic = make_base(tmp_path / "dynamic", rope=RopeConfig(kind="dynamic", factor=2.0))
    with pytest.raises(ConfigError, match="RoPE of type dynamic"):
        add_prefix(load_model(dynamic), 4, seed=0)
