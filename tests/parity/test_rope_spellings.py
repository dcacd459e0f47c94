"""Every way of stretching RoPE, in the spelling of transformers 4 and of 5, gives transformers' logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from leveret.weights.load import load_model, read_config
from leveret.weights.save import save_model

transformers = pytest.importorskip("transformers", reason="the oracle of this file")

KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "yarn tuned": {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 8.0, "attention_factor": 1.3},
    "yarn mscale": {"factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.707, "mscale_all_dim": 1.2},
    "yarn one mscale": {"factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.5, "mscale_all_dim": 0.0},
    "yarn told": {
        "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 0.9, "mscale": 2.0,
        "mscale_all_dim": 1.0,
    },
    "llama3": {"factor": 8.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}  # fmt: skip


def oracle_of(kind: str) -> Any:
    rope = {"rope_theta": 500.0, "rope_type": kind.split()[0], **KINDS[kind]}
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, rope_parameters=rope, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def respell(directory: Path, kind: str) -> None:
    """config.json as transformers 4 wrote it."""
    values = json.loads((directory / "config.json").read_text())
    rope = values.pop("rope_parameters")
    values["rope_theta"] = rope.pop("rope_theta")
    values["rope_scaling"] = rope if kind != "default" else None
    if kind in ("linear", "dynamic"):
        rope["type"] = rope.pop("rope_type")
    (directory / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("length", [20, 50])
@torch.no_grad()
def test_logits_equal_transformers(kind: str, version: int, length: int, tmp_path: Path) -> None:
    oracle = oracle_of(kind)
    oracle.save_pretrained(tmp_path)
    if version == 4:
        respell(tmp_path, kind)
    ids = torch.randint(100, (2, length), generator=torch.Generator().manual_seed(0))
    ours = load_model(tmp_path)
    torch.testing.assert_close(ours(ids), oracle(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", list(KINDS))
@torch.no_grad()
def test_what_we_save_means_the_same_to_both_spellings(kind: str, tmp_path: Path) -> None:
    oracle = oracle_of(kind)
    oracle.save_pretrained(tmp_path / "oracle")
    save_model(load_model(tmp_path / "oracle"), tmp_path / "ours")
    ids = torch.randint(100, (1, 50), generator=torch.Generator().manual_seed(0))
    values = json.loads((tmp_path / "ours" / "config.json").read_text())
    for removed in ((), ("rope_parameters",), ("rope_theta", "rope_scaling")):
        kept = {key: value for key, value in values.items() if key not in removed}
        (tmp_path / "ours" / "config.json").write_text(json.dumps(kept))
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
        torch.testing.assert_close(again(ids).logits, oracle(ids).logits, atol=1e-5, rtol=0)
        assert read_config(tmp_path / "ours") == read_config(tmp_path / "oracle")
