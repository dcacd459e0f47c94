"""GPTQModel, the library that transformers reads these files with, sees the weights that we see; and we see its own.

Skipped where it is not installed: it asks for newer packages than this project's other peers (see
benchmarks/quantize_cpu.py for an environment of its own).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from leveret.config import parse_config
from leveret.console import Console
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run
from leveret.quantize.tensors import quantized_layers
from leveret.weights.load import load_model

pytestmark = pytest.mark.slow

HALF_ROUNDING = 1e-3
"""GPTQModel writes weights out in float16."""


@pytest.fixture(scope="module")
def linears() -> tuple[Any, Any, Any]:
    """Its Linears for GPTQ and AWQ, and what it does to zero points when it reads a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("gptqmodel", reason="the library that others read such files with")
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear
        from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
        from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
    return TorchLinear, AwqTorchLinear, convert_gptq_v1_to_v2_format_module


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "gptq", "group_size": 32, "desc_act": True, "symmetric": False},
        {"method": "gptq", "group_size": 32},
        {"method": "gptq", "group_size": None, "bits": 8},
        {"method": "awq", "group_size": 32},
    ],
)
def test_its_linears_hold_the_weights_that_ours_hold(
    make_directory: Callable[..., Path], tmp_path: Path, linears: tuple[Any, Any, Any], changes: dict[str, object]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a hare runs over the field, 野兔在跑。" * 40, encoding="utf-8")
    values = {"model": str(make_directory()), "output": tmp_path / "q", "calibration": [text], "text_tokens": 64}
    config = parse_config(QuantizeConfig, values | changes, source="test")
    run(config, Console(quiet=True))
    stored = load_file(tmp_path / "q" / "model.safetensors")
    gptq, awq, plus_one = linears
    for name, layer in quantized_layers(load_model(tmp_path / "q")).items():
        theirs = (awq if config.method == "awq" else gptq)(
            bits=config.bits, group_size=config.group_size or -1, sym=config.symmetric, desc_act=config.desc_act,
            in_features=layer.in_features, out_features=layer.out_features, bias=False, register_buffers=True,
        )  # fmt: skip
        prefix = f"model.{name}."
        tensors = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
        assert set(tensors) <= set(dict(theirs.named_buffers()))
        theirs.load_state_dict(tensors, strict=False)
        if config.method == "awq":
            weight = theirs._dequantize_weight_for_inference(torch.zeros(1), dtype=torch.float16).T.float()
        else:
            plus_one(theirs, bits=config.bits, pack_dtype=torch.int32)
            weight = theirs.dequantize_weight().T.float()
        ours = layer.dequantize()
        assert float((weight - ours).abs().max()) < HALF_ROUNDING * float(ours.abs().max())
