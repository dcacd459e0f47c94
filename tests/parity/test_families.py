"""Our decoder and transformers' give the same logits, gradients and greedy text, for every family, both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from leveret.kernels.cross_entropy import chunked_cross_entropy
from leveret.model.cache import KVCache
from leveret.model.decoder import Decoder
from leveret.model.families import FAMILIES
from leveret.model.moe import load_balancing_loss
from leveret.weights.load import load_model, read_config
from leveret.weights.save import save_model

transformers = pytest.importorskip("transformers", reason="the oracle of this file")

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@dataclass
class Pair:
    """The oracle, its directory, and our model loaded from it."""

    oracle: Any
    directory: Path
    ours: Decoder


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough that a wrong detail shows, norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty(parameter.shape).normal_(0, 0.1, generator=generator)
            parameter.copy_(1 + noise if parameter.dim() == 1 else noise)


def build(config_class: str, **options: Any) -> Any:
    config = getattr(transformers, f"{config_class}Config")(**SIZES | options)
    model = getattr(transformers, f"{config_class}ForCausalLM")(config).eval()
    randomize(model)
    return model


def rename_as_aquila(directory: Path) -> None:
    edit_config(directory, model_type="aquila", architectures=["AquilaForCausalLM"])


def fuse_as_lingowhale(directory: Path, name: str = "qkv_proj") -> None:
    edit_config(directory, model_type="lingowhale", architectures=["LingoWhaleForCausalLM"])
    tensors = load_file(directory / "model.safetensors")
    for layer in range(SIZES["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.self_attn"
        parts = [tensors.pop(f"{prefix}.{letter}_proj.weight") for letter in "qkv"]
        tensors[f"{prefix}.{name}.weight"] = torch.cat(parts)
    save_file(tensors, directory / "model.safetensors")


def edit_config(directory: Path, **changes: Any) -> None:
    values = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(values))


def nothing(directory: Path) -> None:
    """The directory is already this family's."""


ROWS: dict[str, tuple[str, dict[str, Any], Callable[[Path], None]]] = {
    "mistral": ("Mistral", {"sliding_window": 8, "head_dim": 24}, nothing),
    "llama": ("Llama", {"tie_word_embeddings": True}, nothing),
    "aquila": ("Llama", {"num_key_value_heads": 4}, rename_as_aquila),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, nothing),
    "lingowhale": ("Llama", {"pad_token_id": 0}, fuse_as_lingowhale),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    made = {}
    for family, (config_class, options, adapt) in ROWS.items():
        oracle = build(config_class, **options)
        directory = tmp_path_factory.mktemp(family)
        oracle.save_pretrained(directory)
        adapt(directory)
        made[family] = Pair(oracle, directory, load_model(directory))
    return made


@pytest.fixture(params=list(ROWS))
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


def some_ids(batch: int = 2, length: int = 30) -> torch.Tensor:
    return torch.randint(SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(1))


def test_every_family_has_a_row() -> None:
    assert {family.name for family in FAMILIES} == set(ROWS)


@torch.no_grad()
def test_logits_equal_transformers_also_past_the_window(pair: Pair) -> None:
    wanted, got = pair.oracle(some_ids()).logits, pair.ours(some_ids())
    assert wanted.abs().max() > 1
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_cached_steps_equal_transformers_at_every_length(pair: Pair) -> None:
    wanted = pair.oracle(some_ids()).logits
    cache = KVCache(pair.ours.config, 2, 30)
    steps = [pair.ours(some_ids()[:, at : at + 1], cache=cache) for at in range(30)]
    torch.testing.assert_close(torch.cat(steps, dim=1), wanted, atol=1e-5, rtol=0)


def test_gradients_of_the_loss_equal_transformers(pair: Pair) -> None:
    ids = some_ids()
    pair.oracle.zero_grad()
    pair.ours.zero_grad()
    pair.oracle(ids, labels=ids).loss.backward()
    hidden = pair.ours.hidden(ids)[:, :-1].flatten(0, 1)
    loss, count = chunked_cross_entropy(hidden, pair.ours.lm_head.weight, ids[:, 1:].flatten())
    (loss / count).backward()
    theirs = pair.oracle.model
    torch.testing.assert_close(
        pair.ours.embed_tokens.weight.grad, theirs.embed_tokens.weight.grad, atol=1e-5, rtol=1e-4
    )
    first, oracle_first = pair.ours.layers[0].self_attn, theirs.layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        torch.testing.assert_close(
            getattr(first, name).weight.grad, getattr(oracle_first, name).weight.grad, atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(pair.ours.norm.weight.grad, theirs.norm.weight.grad, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_greedy_text_equals_transformers(pair: Pair) -> None:
    prompt = some_ids(1, 5)
    wanted = pair.oracle.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    cache = KVCache(pair.ours.config, 1, 25)
    ids, fed = prompt, prompt
    for _ in range(20):
        fed = pair.ours(fed, cache=cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, fed], dim=1)
    assert ids.tolist() == wanted.tolist()


@torch.no_grad()
def test_transformers_loads_what_we_save_and_agrees(pair: Pair, tmp_path: Path) -> None:
    save_model(pair.ours, tmp_path, shard_bytes=60_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    family = pair.ours.config.family
    if family == "lingowhale":  # transformers has no such class: ours must read its own fused files
        assert any(
            "qkv_proj" in name
            for name in json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        )
        again: Any = load_model(tmp_path)
        torch.testing.assert_close(again(some_ids()), pair.ours(some_ids()), atol=0, rtol=0)
        return
    if family == "aquila":  # nor this one, but its files are Llama's
        edit_config(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"])
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(again(some_ids()).logits, pair.oracle(some_ids()).logits, atol=1e-5, rtol=0)
    assert again.config.eos_token_id == pair.oracle.config.eos_token_id


def test_the_config_survives_saving(pair: Pair, tmp_path: Path) -> None:
    save_model(pair.ours, tmp_path)
    assert read_config(tmp_path) == pair.ours.config


@pytest.mark.parametrize("name", ["W_pack", "query_key_value"])
@torch.no_grad()
def test_other_names_of_the_fused_projection_are_found(name: str, pairs: dict[str, Pair], tmp_path: Path) -> None:
    pairs["lingowhale"].oracle.save_pretrained(tmp_path)
    fuse_as_lingowhale(tmp_path, name)
    torch.testing.assert_close(load_model(tmp_path)(some_ids()), pairs["lingowhale"].ours(some_ids()), atol=0, rtol=0)


@torch.no_grad()
def test_router_logits_and_the_balancing_loss_equal_transformers(pairs: dict[str, Pair]) -> None:
    pair = pairs["mixtral"]
    pair.oracle.config.output_router_logits = True
    theirs = pair.oracle(some_ids(), output_router_logits=True)
    router: list[torch.Tensor] = []
    pair.ours.hidden(some_ids(), router=router)
    assert pair.ours.config.moe is not None and len(router) == len(theirs.router_logits) == 2
    for got, wanted in zip(router, theirs.router_logits, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(load_balancing_loss(router, pair.ours.config.moe), theirs.aux_loss, atol=1e-5, rtol=0)
