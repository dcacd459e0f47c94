"""Mistral (2310.06825): Llama with grouped-query attention and a sliding window. HARE-1.1B is one."""

from __future__ import annotations

from leveret.model.families.family import Family
from leveret.model.families.llama import NAMES

FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    names=NAMES,
    has_window=True,
)
