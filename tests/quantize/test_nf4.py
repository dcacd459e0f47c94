"""`leveret quantize method=nf4`: a directory that bitsandbytes reads, its report, and its certificate."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from leveret.certify.config import CertifyConfig
from leveret.certify.run import run as certify
from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import ConfigError, WeightsError
from leveret.precision.nf4 import NF4Linear
from leveret.precision.swap import round_to_nf4
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run
from leveret.weights.load import load_model
from leveret.weights.save import save_model

QUIET = Console(quiet=True)
IDS = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))


def quantize(source, output, **changes):
    data = {"model": str(source), "output": str(output), "method": "nf4"} | changes
    return run(parse_config(QuantizeConfig, data, source="test"), QUIET).summary


def test_what_is_written_is_the_model_rounded_in_memory(directory: Path, text: Path, tmp_path: Path) -> None:
    summary = quantize(directory, tmp_path / "q", text=[text], text_tokens=200)
    model = load_model(directory)
    assert len(round_to_nf4(model)) == 14
    assert torch.equal(load_model(tmp_path / "q")(IDS), model(IDS))
    report = json.loads((tmp_path / "q" / "quantization.json").read_text())
    assert report["method"] == "nf4" and summary["bits"] == 4 and len(report["layers"]) == 14
    assert all(0.05 < layer["relative_error"] < 0.12 for layer in report["layers"])
    assert report["perplexity_after"] == pytest.approx(report["perplexity_before"], rel=0.3)


def test_skipped_layers_stay_whole_and_are_named_to_other_readers(directory: Path, tmp_path: Path) -> None:
    quantize(directory, tmp_path / "q", skip=["down_proj", r"layers\.0\."])
    rounded = {name for name, module in load_model(tmp_path / "q").named_modules() if isinstance(module, NF4Linear)}
    assert len(rounded) == 6 and all(name.startswith("layers.1") and "down" not in name for name in rounded)
    skipped = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert {"lm_head", "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"} <= set(skipped)


def certificate(folder: Path, *forms: object) -> dict[str, Any]:
    data = {"forms": [str(form) for form in forms], "output": str(folder)}
    certify(parse_config(CertifyConfig, data, source="test"), QUIET)
    content: dict[str, Any] = json.loads((folder / "certificate.json").read_text())
    return content["comparisons"][0]


def test_it_is_certified_against_the_whole_model(make_directory, tmp_path: Path) -> None:
    source = make_directory(initializer_range=0.05)
    quantize(source, tmp_path / "q")
    whole = certificate(tmp_path / "a", source, tmp_path / "q")
    assert whole["kind"] == "int4" and whole["figures"]["kl_nats"] > 0


@pytest.mark.slow
def test_transformers_with_bitsandbytes_answers_as_we_do(make_directory, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("bitsandbytes", reason="transformers reads NF4 with it")
    source = make_directory(initializer_range=0.05)
    quantize(source, tmp_path / "q")
    again = certificate(tmp_path / "b", tmp_path / "q", f"transformers:{tmp_path / 'q'}")
    assert again["figures"]["kl_nats"] < 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"bits": 8}, "4 bits"), ({"quantize_lm_head": True}, "output matrix"), ({"skip": ["."]}, "nothing is left")],
)
def test_settings_that_cannot_work_are_refused(directory: Path, tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize(directory, tmp_path / "q", **changes)
    assert not (tmp_path / "q").exists()


def test_a_family_whose_files_fuse_matrices_is_refused_with_the_way_out(make_directory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="several Linears in one matrix") as refusal:
        quantize(make_directory(family="lingowhale"), tmp_path / "q")
    assert "adapter.base" in str(refusal.value.hint)


def test_a_weight_that_is_not_finite_is_named(make_directory, tmp_path: Path) -> None:
    source = make_directory()
    model = load_model(source)
    model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    save_model(model, source)
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.up_proj: 1 of 8192 weights are not finite"):
        quantize(source, tmp_path / "q")
