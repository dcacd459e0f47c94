"""LingoWhale-8B: Llama whose files keep q, k and v in one matrix, stacked by rows in this order.

The modelling code of the release is not public. The order and the name `qkv_proj` are what its LoRA settings and the
sizes imply; `W_pack` and `query_key_value`, the names other releases use for the same thing, are read as well.
"""

from __future__ import annotations

from leveret.model.families.family import Family
from leveret.model.families.llama import ATTENTION_NAMES, FEED_FORWARD_NAMES, OTHER_NAMES

_FUSED = "model.layers.{layer}.self_attn.qkv_proj"

FAMILY = Family(
    name="lingowhale",
    architecture="LingoWhaleForCausalLM",
    defaults={"rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    names=(*OTHER_NAMES, *FEED_FORWARD_NAMES),
    fused=((_FUSED, tuple(ours for ours, _ in ATTENTION_NAMES)),),
    aliases=(
        ("model.layers.{layer}.self_attn.W_pack", _FUSED),
        ("model.layers.{layer}.self_attn.query_key_value", _FUSED),
    ),
)
