"""GPTQ and AWQ from directory to directory: what is written, what it loses, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_tensors

from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import ConfigError
from leveret.model.config import MoeConfig
from leveret.model.decoder import Decoder
from leveret.precision.linear import QuantizedLinear
from leveret.precision.swap import quantizable, read_storage
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run
from leveret.tokenizer.files import Tokenizer
from leveret.weights.load import load_model
from leveret.weights.save import save_model

MakeDirectory = Callable[..., Path]
QUIET = Console(quiet=True)
TEXTS = [
    f"{who} {does} over the {where}, 野兔在{what}跑。"
    for who in ("a hare", "the hound", "every fox", "no owl")
    for does in ("runs", "jumps", "sees far")
    for where in ("field", "hill")
    for what in ("田里", "山上")
]


@pytest.fixture(scope="session")
def skewed(make_directory: MakeDirectory) -> Path:
    """A model some of whose inputs are much larger than others, and come together, as in models that were trained."""
    return skew(make_directory())


def skew(source: Path) -> Path:
    model = load_model(source)
    generator = torch.Generator().manual_seed(0)
    hidden = model.config.hidden_size
    with torch.no_grad():
        low_rank = torch.randn(model.config.vocab_size, 12, generator=generator)
        model.embed_tokens.weight.mul_(0.2).add_(low_rank @ torch.randn(12, hidden, generator=generator))
        for layer in model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.copy_(torch.exp(torch.randn(hidden, generator=generator)))
    save_model(model, source)
    return source


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def quantize(source: Path, output: Path, **changes: object) -> dict[str, Any]:
    values = {"model": str(source), "output": output, "group_size": 32, "fewest_tokens": 8} | changes
    run(parse_config(QuantizeConfig, values, source="test"), QUIET)
    report: dict[str, Any] = json.loads((output / "quantization.json").read_text())
    return report


def lost(source: Path, quantized: Path) -> float:
    """Of the logits on calibration text, relative."""
    tokenizer = Tokenizer.load(source)
    ids = torch.tensor([tokenizer.encode("".join(TEXTS))[:120]])
    with torch.no_grad():
        whole, small = load_model(source)(ids), load_model(quantized)(ids)
    return float((small - whole).norm() / whole.norm())


@pytest.mark.parametrize(("bits", "symmetric", "desc_act"), [(4, True, False), (4, False, True), (8, True, True)])
def test_gptq_loses_less_of_the_products_than_rounding_to_nearest(
    skewed: Path, tmp_path: Path, calibration: Path, bits: int, symmetric: bool, desc_act: bool
) -> None:
    plain = quantize(skewed, tmp_path / "rtn", bits=bits, symmetric=symmetric)
    found = quantize(
        skewed, tmp_path / "gptq", method="gptq", bits=bits, symmetric=symmetric, desc_act=desc_act,
        calibration=[calibration], damp=0.01,
    )  # fmt: skip
    assert lost(skewed, tmp_path / "gptq") < 0.8 * lost(skewed, tmp_path / "rtn")
    assert found["relative_error"] > plain["relative_error"], "the weights themselves are further off"
    assert len(found["layers"]) == 14 and found["rounded_alone"] == 0
    for layer in found["layers"]:
        assert layer["method"] == "gptq" and layer["reason"] is None
        assert 0 < layer["output_error"] < layer["relative_error"] and layer["tokens"] == found["calibration_tokens"]


def test_awq_loses_less_than_rounding_to_nearest_and_keeps_the_function(
    skewed: Path, tmp_path: Path, calibration: Path
) -> None:
    quantize(skewed, tmp_path / "rtn", symmetric=False)
    quantize(skewed, tmp_path / "awq", method="awq", calibration=[calibration])
    assert lost(skewed, tmp_path / "awq") < 0.9 * lost(skewed, tmp_path / "rtn")
    config = json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "awq" and config["modules_to_not_convert"] == ["lm_head"]
    before, after = load_model(skewed), load_model(tmp_path / "awq")
    assert not torch.equal(before.layers[0].input_layernorm.weight, after.layers[0].input_layernorm.weight)
    assert torch.equal(before.norm.weight, after.norm.weight)


def test_the_config_and_the_index_of_groups_say_that_columns_were_reordered(
    skewed: Path, tmp_path: Path, calibration: Path
) -> None:
    quantize(skewed, tmp_path / "q", method="gptq", desc_act=True, calibration=[calibration])
    assert json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]["desc_act"] is True
    layer = load_model(tmp_path / "q").layers[0]
    groups = [layer.self_attn.get_submodule(name).g_idx for name in ("q_proj", "k_proj", "v_proj")]
    assert not torch.equal(groups[0], torch.arange(64, dtype=torch.int32) // 32)
    assert torch.equal(groups[0], groups[1]) and torch.equal(groups[0], groups[2])
    assert groups[0].bincount().tolist() == [32, 32]


def decoded(stored: dict[str, np.ndarray], config: dict[str, Any]) -> np.ndarray:
    """A stored weight (O, I) by the published layouts, in numpy that shares no code with ours."""
    bits, gptq = config["bits"], config["quant_method"] == "gptq"
    order = np.arange(32 // bits) if gptq else np.array([0, 2, 4, 6, 1, 3, 5, 7])  # of the outputs in a word

    def fields(words: np.ndarray) -> np.ndarray:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        return ((words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)).astype(np.int64)

    def along_outputs(words: np.ndarray) -> np.ndarray:
        found = np.empty((*words.shape, len(order)), dtype=np.int64)
        found[..., order] = fields(words)
        return found.reshape(len(words), -1)

    zeros = along_outputs(stored["qzeros"]) + int(gptq)  # (G, O)
    levels = fields(stored["qweight"].T).reshape(zeros.shape[1], -1).T if gptq else along_outputs(stored["qweight"])
    groups = stored["g_idx"] if gptq else np.arange(len(levels)) // config["group_size"]
    return ((levels - zeros[groups]) * stored["scales"].astype(np.float32)[groups]).T


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "gptq", "desc_act": True, "symmetric": False},
        {"method": "gptq", "bits": 8, "symmetric": False},
        {"method": "awq"},
    ],
)
def test_files_hold_by_the_published_layouts_what_the_kernels_multiply_with(
    skewed: Path, tmp_path: Path, calibration: Path, changes: dict[str, object]
) -> None:
    quantize(skewed, tmp_path / "q", calibration=[calibration], other_dtype="bfloat16", **changes)
    config = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    tensors = load_tensors(tmp_path / "q" / "model.safetensors")
    model = load_model(tmp_path / "q")
    for name in ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"):
        prefix = f"model.{name}."
        stored = {key.removeprefix(prefix): value.numpy() for key, value in tensors.items() if prefix in key}
        weight = torch.from_numpy(decoded(stored, config)).float()
        layer = model.get_submodule(name)
        torch.testing.assert_close(layer.dequantize(), weight, rtol=0, atol=1e-6)
        assert layer.compiled_refusal() is not None or layer.compiled_weight() is not None
        for rows in (1, 20):
            x = torch.randn(rows, layer.in_features, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
            wanted = x.float() @ weight.T
            for product in ("packed", "copy", "plain"):
                layer.product = product
                assert float((layer(x).float() - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_mixture_keeps_its_router_and_its_choices(
    make_directory: MakeDirectory, tmp_path: Path, calibration: Path, method: str
) -> None:
    source = skew(make_directory(family="mixtral", moe=MoeConfig(num_experts=4)))
    quantize(source, tmp_path / "q", method=method, calibration=[calibration])
    before, after = load_model(source), load_model(tmp_path / "q")
    states = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [
            layer.mlp.gate(layer.post_attention_layernorm(states))
            for layer in (before.layers[0], after.layers[0])
        ]  # fmt: skip
    assert torch.equal(logits[1], logits[0])
    assert sum(isinstance(module, QuantizedLinear) for module in after.modules()) == 2 * (4 + 12)
    if method == "gptq":
        assert torch.equal(before.layers[0].mlp.gate.weight, after.layers[0].mlp.gate.weight)
    ids = torch.arange(40).reshape(2, 20)
    assert float((after(ids) - before(ids)).detach().norm() / before(ids).detach().norm()) < 0.6


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_experts_that_saw_too_few_tokens_are_rounded_to_nearest_and_named(
    make_directory: MakeDirectory, tmp_path: Path, calibration: Path, method: str
) -> None:
    source = make_directory(family="mixtral", moe=MoeConfig(num_experts=4, experts_per_token=1))
    model = load_model(source)
    with torch.no_grad():
        model.layers[1].mlp.gate.weight[2] = 0  # chosen only where the others' logits are negative
        model.layers[1].mlp.gate.weight[3] = model.layers[1].mlp.gate.weight[0]  # a tie goes to the first
        model.layers[1].mlp.gate.weight[1] = -model.layers[1].mlp.gate.weight[0]  # one of the two is positive
    save_model(model, source)
    report = quantize(source, tmp_path / "q", method=method, calibration=[calibration])
    alone = {layer["name"]: layer for layer in report["layers"] if layer["reason"] is not None}
    down, up = alone["layers.1.mlp.experts.2.down_proj"], alone["layers.1.mlp.experts.2.up_proj"]
    assert down["method"] == up["method"] == "round-to-nearest" and down["tokens"] == 0
    assert "it saw 0 of" in down["reason"] and "fewer than 8" in down["reason"]
    assert down["output_error"] is None and down["relative_error"] > 0, "no token, no product that could be wrong"
    assert report["rounded_alone"] == len(alone) >= 3
    assert not any(name.startswith("layers.1.self_attn") for name in alone)
    assert load_model(tmp_path / "q")(torch.arange(20)[None]).isfinite().all()


@pytest.mark.parametrize("family", ["llama", "lingowhale", "aquila"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_every_family_is_quantized_and_read_back(
    make_directory: MakeDirectory, tmp_path: Path, calibration: Path, family: str, method: str
) -> None:
    source = make_directory(family=family)
    changes: dict[str, object] = {"desc_act": True} if method == "gptq" else {}
    quantize(source, tmp_path / "q", method=method, calibration=[calibration], **changes)
    assert lost(source, tmp_path / "q") < 0.4


def test_perplexity_before_and_after_is_that_of_the_whole_models_on_text_that_was_held_out(
    skewed: Path, tmp_path: Path, calibration: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(TEXTS[:9]), encoding="utf-8")
    plain = quantize(skewed, tmp_path / "rtn", text=[text])
    found = quantize(skewed, tmp_path / "gptq", method="gptq", calibration=[calibration], text=[text])
    assert found["perplexity_before"] == pytest.approx(plain["perplexity_before"], rel=1e-4)
    assert abs(found["perplexity_after"] / plain["perplexity_before"] - 1) < 0.5
    held = quantize(skewed, tmp_path / "held", method="gptq", calibration=[calibration])
    assert held["calibration_documents"] == len(TEXTS) - len(TEXTS) // 10 and held["text_tokens"] > 0
    assert held["perplexity_before"] != held["perplexity_after"]


def test_the_output_matrix_is_solved_too_when_it_is_asked_for(skewed: Path, tmp_path: Path, calibration: Path) -> None:
    report = quantize(skewed, tmp_path / "q", method="gptq", calibration=[calibration], quantize_lm_head=True)
    head = report["layers"][-1]
    assert head["name"] == "lm_head" and head["method"] == "gptq" and head["output_error"] < head["relative_error"]
    assert isinstance(load_model(tmp_path / "q").lm_head, QuantizedLinear)


def test_skipped_layers_stay_whole_and_still_read_scaled_inputs(
    skewed: Path, tmp_path: Path, calibration: Path
) -> None:
    quantize(skewed, tmp_path / "awq", method="awq", calibration=[calibration], skip=[r"q_proj", r"layers\.1\."])
    model = load_model(tmp_path / "awq")
    quantized = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(quantized) == 6 and not any("q_proj" in name or "layers.1" in name for name in quantized)
    assert lost(skewed, tmp_path / "awq") < 0.5
    storage = read_storage(json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"])
    with torch.device("meta"):
        assert len(quantizable(Decoder(model.config), storage, lambda name: f"model.{name}")) == 6


def test_tied_heads_and_other_dtypes_are_kept_as_they_should_be(
    make_directory: MakeDirectory, tmp_path: Path, calibration: Path
) -> None:
    source = make_directory(tie_word_embeddings=True)
    quantize(source, tmp_path / "q", method="gptq", calibration=[calibration], other_dtype="bfloat16")
    model = load_model(tmp_path / "q")
    assert model.lm_head.weight is model.embed_tokens.weight and model.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(model.embed_tokens.weight, load_model(source).embed_tokens.weight.to(torch.bfloat16))


def test_a_failure_leaves_nothing_behind(
    skewed: Path, tmp_path: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("leveret.quantize.run.save_model", fail)
    with pytest.raises(KeyboardInterrupt):
        quantize(skewed, tmp_path / "out" / "q", method="gptq", calibration=[calibration])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gptq"}, "method gptq needs text: calibration=FILE"),
        ({"method": "awq", "bits": 8, "calibration": ["x"]}, "method awq has 4 bits"),
        ({"method": "awq", "quantize_lm_head": True, "calibration": ["x"]}, "leaves the output matrix whole"),
    ],
)
def test_what_a_method_cannot_do_is_refused_before_anything_runs(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(QuantizeConfig, {"model": "m", "output": "o"} | changes, source="test")
