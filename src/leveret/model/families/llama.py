"""Llama: the plain form that the other families differ from (also the DeepSeek-LLM, Yi and TinyLlama checkpoints)."""

from __future__ import annotations

from leveret.model.families.family import Family

ATTENTION_NAMES = (
    ("layers.{layer}.self_attn.q_proj", "model.layers.{layer}.self_attn.q_proj"),
    ("layers.{layer}.self_attn.k_proj", "model.layers.{layer}.self_attn.k_proj"),
    ("layers.{layer}.self_attn.v_proj", "model.layers.{layer}.self_attn.v_proj"),
)

FEED_FORWARD_NAMES = (
    ("layers.{layer}.mlp.gate_proj", "model.layers.{layer}.mlp.gate_proj"),
    ("layers.{layer}.mlp.up_proj", "model.layers.{layer}.mlp.up_proj"),
    ("layers.{layer}.mlp.down_proj", "model.layers.{layer}.mlp.down_proj"),
)

OTHER_NAMES = (
    ("embed_tokens", "model.embed_tokens"),
    ("layers.{layer}.input_layernorm", "model.layers.{layer}.input_layernorm"),
    ("layers.{layer}.self_attn.o_proj", "model.layers.{layer}.self_attn.o_proj"),
    ("layers.{layer}.post_attention_layernorm", "model.layers.{layer}.post_attention_layernorm"),
    ("norm", "model.norm"),
    ("lm_head", "lm_head"),
)

NAMES = (*OTHER_NAMES, *ATTENTION_NAMES, *FEED_FORWARD_NAMES)
"""Weight names shared by Llama, Mistral and Aquila."""

FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    defaults={"rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2},
    names=NAMES,
)
