"""A config.json is read strictly: what may change the maths is named, what is mere metadata is let through."""

from __future__ import annotations

from typing import Any

import pytest

from leveret.errors import ConfigError
from leveret.model.config import ModelConfig, MoeConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.families import FAMILIES, family_for

PLAIN: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_bias", True), ("mlp_bias", True), ("hidden_act", "gelu"), ("attention_dropout", 0.1),
        ("partial_rotary_factor", 0.5), ("qk_norm", True), ("final_logit_softcapping", 30.0),
        ("sliding_window", 128), ("num_local_experts", 8), ("layer_types", ["full_attention"]),
    ],
)  # fmt: skip
def test_a_field_that_changes_the_maths_is_refused_by_name_and_value(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        family_for("llama").config_from_hf(PLAIN | {field: value})
    assert field in str(refusal.value) and repr(value) in str(refusal.value)


def test_all_wrong_fields_are_named_at_once_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"mlp_bias = True.*num_key_value_head = 2.*did you mean num_key_value_heads"):
        family_for("llama").config_from_hf(PLAIN | {"mlp_bias": True, "num_key_value_head": 2})


def test_metadata_nulls_and_neutral_values_are_let_through() -> None:
    harmless = {
        "_name_or_path": "x", "architectures": ["A"], "torch_dtype": "bfloat16", "use_cache": True, "auto_map": {},
        "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "qk_norm": None, "pretraining_tp": 1,
        "transformers_version": "4.1", "quantization_config": {"bits": 4}, "model_type": "llama",
    }  # fmt: skip
    family = family_for("llama")
    assert family.config_from_hf(PLAIN | harmless) == family.config_from_hf(PLAIN)


@pytest.mark.parametrize("key", ["emb_dropout_prob", "attn_pdrop", "ffn_dropout", "resid_dropout_p"])
def test_a_dropout_of_zero_is_let_through_however_it_is_called(key: str) -> None:
    family = family_for("lingowhale")
    assert family.config_from_hf(PLAIN | {key: 0.0}) == family.config_from_hf(PLAIN | {key: 0})
    for value in (0.1, "0", [0]):
        with pytest.raises(ConfigError, match=key):
            family.config_from_hf(PLAIN | {key: value})


def test_what_a_file_leaves_out_is_what_transformers_assumes() -> None:
    transformers = pytest.importorskip("transformers")
    for name, oracle in (("mistral", "Mistral"), ("llama", "Llama"), ("mixtral", "Mixtral")):
        values = PLAIN | {"hidden_size": 64, "num_attention_heads": 8}
        ours = family_for(name).config_from_hf(values)
        theirs = getattr(transformers, f"{oracle}Config")(**values)
        assert ours.num_key_value_heads == theirs.num_key_value_heads
        assert ours.rms_norm_eps == theirs.rms_norm_eps
        assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
        assert ours.max_position_embeddings == theirs.max_position_embeddings
        assert ours.sliding_window == getattr(theirs, "sliding_window", None)
        assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
        if ours.moe is not None:
            assert ours.moe.num_experts == theirs.num_local_experts
            assert ours.moe.router_aux_loss_coef == theirs.router_aux_loss_coef


def test_an_explicit_null_window_is_no_window() -> None:
    assert family_for("mistral").config_from_hf(PLAIN | {"num_key_value_heads": 4}).sliding_window == 4096
    values = PLAIN | {"num_key_value_heads": 4, "sliding_window": None}
    assert family_for("mistral").config_from_hf(values).sliding_window is None


def test_several_end_ids_are_kept() -> None:
    config = family_for("llama").config_from_hf(PLAIN | {"eos_token_id": [2, 7]})
    assert config.eos_token_ids == (2, 7)
    assert family_for("llama").config_to_hf(config)["eos_token_id"] == [2, 7]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": 33}, "hidden_size is 33"),
        ({"num_key_value_heads": 3}, "num_key_value_heads, 3"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_type is 'su'"),
        ({"rope_scaling": {"type": "linear"}}, "needs a factor"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor is '4'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "short_factor": [1.0]}}, "short_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope factor is 0.5"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta = 1000000.0"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differs by layer"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        family_for("llama").config_from_hf(PLAIN | values)


@pytest.mark.parametrize(("key", "value"), [("num_local_experts", "8"), ("num_experts_per_tok", True)])
def test_wrong_values_of_a_mixture_are_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} is {value!r}, it must be of type int"):
        family_for("mixtral").config_from_hf(PLAIN | {"num_key_value_heads": 4, key: value})


def test_an_unknown_family_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"known are mistral, llama[\s\S]*did you mean mixtral"):
        family_for("mixtrall")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_tensor_has_a_name_in_the_file_and_comes_back(family) -> None:
    moe = MoeConfig(num_experts=3) if family.has_experts else None
    config = ModelConfig(family=family.name, **PLAIN, moe=moe)
    for ours in Decoder(config).state_dict():
        assert ours in family.our_names(family.stored_name(ours))
    assert family.our_names("model.layers.0.unheard_of.weight") == ()
    assert family.our_names("model.layers.x.mlp.gate_proj.weight") == ()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_config_survives_the_way_out_and_back(family) -> None:
    config = ModelConfig(
        family=family.name, **PLAIN, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, pad_token_id=3,
        bos_token_id=1, eos_token_id=(2, 5), sliding_window=9 if family.has_window else None,
        moe=MoeConfig(num_experts=4, router_aux_loss_coef=0.02) if family.has_experts else None,
        norm_scales_in_float32=family.norm_scales_in_float32,
        rope=RopeConfig(kind="yarn", factor=4.0, theta=1e6, original_max_position_embeddings=32),
    )  # fmt: skip
    assert family.config_from_hf(family.config_to_hf(config)) == config


def test_a_config_that_a_family_cannot_express_is_refused() -> None:
    config = ModelConfig(family="llama", **PLAIN, sliding_window=8)
    with pytest.raises(ConfigError, match="a llama model cannot have sliding_window 8"):
        family_for("llama").check(config)


def test_linear_and_dynamic_rope_lengthen_the_context() -> None:
    config = ModelConfig(**PLAIN, max_position_embeddings=4096, rope=RopeConfig(kind="linear", factor=4.0))
    assert config.context_tokens == 16384
