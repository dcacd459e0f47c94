"""Mixtral (2401.04088): Mistral with eight experts in place of each feed-forward block. Huozi 3.5 is one.

In the files w1 is the gate, w3 the up and w2 the down projection of an expert.
"""

from __future__ import annotations

from leveret.model.families.family import Family
from leveret.model.families.llama import ATTENTION_NAMES, OTHER_NAMES

_EXPERT = "model.layers.{layer}.block_sparse_moe.experts.{expert}"
_ROUTER = "model.layers.{layer}.block_sparse_moe.gate"

FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    names=(
        *OTHER_NAMES,
        *ATTENTION_NAMES,
        ("layers.{layer}.mlp.gate", _ROUTER),
        ("layers.{layer}.mlp.experts.{expert}.gate_proj", f"{_EXPERT}.w1"),
        ("layers.{layer}.mlp.experts.{expert}.up_proj", f"{_EXPERT}.w3"),
        ("layers.{layer}.mlp.experts.{expert}.down_proj", f"{_EXPERT}.w2"),
    ),
    modules=(("model.layers.{layer}.mlp.gate", _ROUTER),),
    has_window=True,
    has_experts=True,
)
