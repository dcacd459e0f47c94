"""The verb from directory to directory: what is written, what is refused, what is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as torch_file
from safetensors.torch import save_file

from leveret.config import parse_config, rehearsed
from leveret.console import Console
from leveret.errors import ConfigError, DataError, WeightsError
from leveret.model.config import MoeConfig
from leveret.precision.linear import QuantizedLinear
from leveret.quantize.config import UNUSED, QuantizeConfig
from leveret.quantize.run import run
from leveret.weights.load import load_model
from leveret.weights.save import save_model

MakeDirectory = Callable[..., Path]
IDS = torch.arange(40).reshape(2, 20)
QUIET = Console(quiet=True)


def quantize(source: Path, output: Path, **changes: object) -> dict[str, object]:
    config = parse_config(
        QuantizeConfig, {"model": str(source), "output": output, "group_size": 32} | changes, source="test"
    )
    return run(config, QUIET).summary


def decoded(directory: Path, module: str, bits: int) -> np.ndarray:
    """A stored weight (O, I), decoded by vectorised numpy that shares no code with ours."""
    stored = load_file(directory / "model.safetensors")
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    mask = np.uint32(2**bits - 1)
    words = stored[f"{module}.qweight"].view(np.uint32)
    levels = ((words[:, None, :] >> shifts[None, :, None]) & mask).reshape(-1, words.shape[1])  # (I, O)
    words = stored[f"{module}.qzeros"].view(np.uint32)
    zeros = ((words[:, :, None] >> shifts) & mask).reshape(words.shape[0], -1).astype(np.int64) + 1  # (G, O)
    group = stored[f"{module}.g_idx"]
    return ((levels.astype(np.int64) - zeros[group]) * stored[f"{module}.scales"].astype(np.float32)[group]).T


def test_the_model_that_is_read_is_not_replaced(make_directory: MakeDirectory) -> None:
    source = make_directory()
    for output in (source, source.parent):
        with pytest.raises(ConfigError, match="would replace"):
            quantize(source, output)
    assert load_model(source)(IDS).isfinite().all()


@pytest.mark.parametrize(("bits", "most"), [(4, 0.15), (8, 0.01)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_layer_is_close_to_the_weight_it_replaces(
    directory: Path, tmp_path: Path, bits: int, most: float, symmetric: bool
) -> None:
    quantize(directory, tmp_path / "q", bits=bits, symmetric=symmetric)
    whole = load_file(directory / "model.safetensors")
    for layer in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"):
        weight = whole[f"model.layers.1.{layer}.weight"]
        stored = decoded(tmp_path / "q", f"model.layers.1.{layer}", bits)
        assert 0 < np.linalg.norm(stored - weight) / np.linalg.norm(weight) < most


def test_the_loaded_model_multiplies_with_exactly_what_is_stored(directory: Path, tmp_path: Path) -> None:
    quantize(directory, tmp_path / "q")
    reference = load_model(directory)
    for name, module in reference.named_modules():
        if name.endswith("_proj"):
            module.weight.data = torch.from_numpy(decoded(tmp_path / "q", f"model.{name}", 4)).float()
    torch.testing.assert_close(load_model(tmp_path / "q")(IDS), reference(IDS), rtol=0, atol=1e-5)


def test_embedding_head_and_norms_are_copied_bit_for_bit(directory: Path, tmp_path: Path) -> None:
    quantize(directory, tmp_path / "q")
    before, after = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "q"))
    kept = [name for name in before if name in after]
    assert sorted(name.rpartition(".")[0].rpartition(".")[2] for name in kept) == sorted(
        ["embed_tokens", "lm_head", "norm", *2 * ["input_layernorm", "post_attention_layernorm"]]
    )
    assert all(np.array_equal(before[name], after[name]) for name in kept)


def test_the_config_says_what_other_readers_need(directory: Path, tmp_path: Path) -> None:
    quantize(directory, tmp_path / "q", group_size=None, bits=8)
    quantization = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert quantization == {
        "quant_method": "gptq",
        "bits": 8,
        "group_size": -1,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "lm_head": False,
    }


def test_tokenizer_template_tools_and_generation_travel_and_the_old_card_does_not(
    directory: Path, tmp_path: Path
) -> None:
    quantize(directory, tmp_path / "q")
    for name in (
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"), "tools.json", "generation_config.json"
    ):  # fmt: skip
        assert (tmp_path / "q" / name).read_bytes() == (directory / name).read_bytes()
    assert json.loads((tmp_path / "q" / "generation_config.json").read_text())["max_new_tokens"] == 7
    assert not (tmp_path / "q" / "README.md").exists()


def test_the_report_has_sizes_errors_and_perplexities(directory: Path, text: Path, tmp_path: Path) -> None:
    summary = quantize(directory, tmp_path / "q", text=[text], text_tokens=200)
    report = json.loads((tmp_path / "q" / "quantization.json").read_text())
    assert len(report["layers"]) == 14 and report["bytes_after"] < 0.6 * report["bytes_before"]
    assert report["bytes_after"] == (tmp_path / "q" / "model.safetensors").stat().st_size
    assert all(0.05 < layer["relative_error"] < 0.15 for layer in report["layers"])
    assert summary["perplexity_before"] == pytest.approx(report["perplexity_before"])
    assert report["perplexity_before"] != report["perplexity_after"] and report["text_tokens"] == 200
    assert report["perplexity_after"] == pytest.approx(report["perplexity_before"], rel=0.3)


def test_eight_bits_lose_less_than_four(directory: Path, tmp_path: Path) -> None:
    losses = [quantize(directory, tmp_path / str(bits), bits=bits)["relative_error"] for bits in (8, 4)]
    assert 10 * losses[0] < losses[1]


@pytest.mark.parametrize("family", ["llama", "mixtral", "lingowhale", "aquila"])
def test_every_family_is_quantized_and_read_back(make_directory: MakeDirectory, tmp_path: Path, family: str) -> None:
    source = make_directory(family=family, moe=MoeConfig(num_experts=4) if family == "mixtral" else None)
    quantize(source, tmp_path / "q", bits=8)
    whole, small = load_model(source), load_model(tmp_path / "q")
    assert float((small(IDS) - whole(IDS)).detach().norm() / whole(IDS).detach().norm()) < 0.03
    quantized = [name for name, module in small.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(quantized) == (2 * (4 + 12) if family == "mixtral" else 14)
    assert not any(name.endswith(".gate") for name in quantized)


def test_tied_weights_stay_tied(make_directory: MakeDirectory, tmp_path: Path) -> None:
    source = make_directory(tie_word_embeddings=True)
    quantize(source, tmp_path / "q", other_dtype="bfloat16")
    model = load_model(tmp_path / "q")
    assert model.lm_head.weight is model.embed_tokens.weight and model.lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="output matrix is the embedding"):
        quantize(source, tmp_path / "q2", quantize_lm_head=True)


def test_skipped_layers_stay_whole_here_and_for_other_readers(directory: Path, tmp_path: Path) -> None:
    quantize(directory, tmp_path / "q", skip=["down_proj", r"^model\.layers\.0\."])
    model = load_model(tmp_path / "q")
    quantized = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert quantized == {
        f"layers.1.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    } | {"layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"}
    dynamic = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]["dynamic"]
    assert list(dynamic) == ["-:.*(?:down_proj)", r"-:.*(?:^model\.layers\.0\.)"]


def test_the_head_can_be_quantized_when_asked(directory: Path, tmp_path: Path) -> None:
    quantize(directory, tmp_path / "q", quantize_lm_head=True)
    assert isinstance(load_model(tmp_path / "q").lm_head, QuantizedLinear)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 48}, r"layers\.0\.self_attn\.q_proj: group_size 48 does not divide 64"),
        ({"skip": ["."]}, "nothing is left to quantize"),
        ({"bits": 3}, "bits"),
        ({"method": "gtpq"}, "method"),
        ({"skip": ["("]}, "not a regular expression"),
    ],
)
def test_settings_that_cannot_work_are_refused_and_nothing_is_written(
    directory: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize(directory, tmp_path / "q", **changes)
    assert not (tmp_path / "q").exists()


def test_a_quantized_model_is_not_quantized_again(directory: Path, tmp_path: Path) -> None:
    quantize(directory, tmp_path / "q")
    with pytest.raises(ConfigError, match="quantized already"):
        quantize(tmp_path / "q", tmp_path / "q2")


def test_a_config_with_null_for_its_quantization_is_that_of_a_whole_model(
    make_directory: MakeDirectory, tmp_path: Path
) -> None:
    source = make_directory()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    quantize(source, tmp_path / "q")
    assert json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]["bits"] == 4


def test_a_weight_that_is_not_finite_is_named_and_nothing_is_written(
    make_directory: MakeDirectory, tmp_path: Path
) -> None:
    source = make_directory()
    model = load_model(source)
    model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    save_model(model, source)
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.up_proj: 1 of 8192 weights are not finite"):
        quantize(source, tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_text_that_is_no_text_is_named(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"noise\.txt"):
        quantize(directory, tmp_path / "q", text=[tmp_path / "noise.txt"])


@pytest.mark.parametrize("method", ["round-to-nearest", "nf4", "gptq"])
@pytest.mark.parametrize(
    ("value", "changes"), [(float("nan"), {}), (1e6, {"other_dtype": "float16"})], ids=["no number", "too large"]
)
def test_what_stays_whole_is_checked_as_what_is_rounded(
    make_directory: MakeDirectory, tmp_path: Path, text: Path, method: str, value: float, changes: dict[str, object]
) -> None:
    source = make_directory()
    model = load_model(source)
    with torch.no_grad():
        model.norm.weight[3] = value
    save_model(model, source)
    given = {"calibration": [text]} if method == "gptq" else {}
    with pytest.raises(WeightsError, match=r"^norm\.weight"):
        quantize(source, tmp_path / "q", method=method, **given, **changes)
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_weight_that_would_need_scales_is_refused(
    make_directory: MakeDirectory, tmp_path: Path, dtype: torch.dtype
) -> None:
    source = make_directory()
    name = "model.layers.1.mlp.up_proj.weight"
    held = torch_file(source / "model.safetensors")
    held[name] = held[name].to(dtype)
    save_file(held, source / "model.safetensors")
    for attempt in (lambda: quantize(source, tmp_path / "q"), lambda: load_model(source)):
        with pytest.raises(WeightsError, match=rf"{name} .* is stored as {str(dtype)[6:]}"):
            attempt()


def test_a_rehearsal_keeps_one_scale_an_output_which_fits_every_width() -> None:
    data = {"model": "m", "output": "q", "group_size": None}
    assert rehearsed(parse_config(QuantizeConfig, data, source="test")).group_size is None


@pytest.mark.parametrize("method", ["round-to-nearest", "nf4"])
def test_a_rehearsal_sets_nothing_in_vain(method: str) -> None:
    small = rehearsed(parse_config(QuantizeConfig, {"model": "m", "output": "q", "method": method}, source="test"))
    assert not small.model_fields_set & UNUSED[method] and small.text_tokens == 512


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [
        ("round-to-nearest", {"desc_act": True, "damp": 0.5}, "round-to-nearest does not use damp, desc_act"),
        ("round-to-nearest", {"calibration_tokens": 99}, "round-to-nearest does not use calibration_tokens"),
        ("awq", {"desc_act": True, "symmetric": False}, "awq does not use desc_act, symmetric"),
        ("nf4", {"damp": 0.5}, "nf4 does not use damp"),
        ("gptq", {"skip": ["down_prj"]}, "no layer has 'down_prj' in its name"),
    ],
)
def test_what_is_set_in_vain_is_told(
    directory: Path, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], method: str,
    given: dict[str, object], told: str,
) -> None:  # fmt: skip
    size = {} if method == "nf4" else {"group_size": 32}
    calibration = {"calibration": [text]} if method in ("gptq", "awq") else {}
    data = {"model": str(directory), "output": tmp_path / "q", "method": method} | size | calibration | given
    run(parse_config(QuantizeConfig, data, source="test"), Console())
    errors = capsys.readouterr().err.split("warning: ")
    assert [told in line for line in errors[1:]] == [True]
