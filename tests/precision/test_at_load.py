"""Quantizing as a model is loaded gives what quantizing its files gives, and says no where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leveret.console import Console
from leveret.errors import ConfigError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.precision.at_load import quantize_in_memory
from leveret.precision.nf4 import NF4Linear
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run as quantize
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.load import load_model
from leveret.weights.save import save_model

IDS = torch.tensor([[5, 17, 3, 40, 8, 21, 9]])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "whole"
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = train_byte_bpe(["Set a timer for five minutes"], vocab_size=280, special_tokens=["</s>"])
    model = Decoder(ModelConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.2, **sizes))
    init_weights(model, 3)
    save_model(model, directory)
    tokenizer.save(directory)
    return directory


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("int8", {"bits": 8, "group_size": None, "search": False}),
        ("int4", {"bits": 4, "group_size": 32, "search": False}),
        ("nf4", {"method": "nf4"}),
    ],
)
def test_it_is_what_the_quantized_files_hold(
    model_dir: Path, tmp_path: Path, kind: str, keys: dict[str, object]
) -> None:
    quantize(QuantizeConfig(model=str(model_dir), output=tmp_path / "stored", **keys), Console(quiet=True))
    stored, at_load = load_model(tmp_path / "stored"), load_model(model_dir, quantize=kind)
    with torch.inference_mode():
        torch.testing.assert_close(at_load(IDS), stored(IDS), rtol=0, atol=1e-5)
        assert not torch.equal(at_load(IDS), load_model(model_dir)(IDS))
    assert at_load.lm_head.weight.dtype == torch.float32


def test_nf4_is_of_the_kind_that_qlora_trains_on(model_dir: Path) -> None:
    model = load_model(model_dir, quantize="nf4", dtype="bfloat16")
    layer = model.layers[0].mlp.down_proj
    assert isinstance(layer, NF4Linear) and layer.storage.double_quantization


def test_groups_fit_the_model(model_dir: Path) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Decoder(ModelConfig(vocab_size=50, **sizes))
    init_weights(model, 3)
    assert quantize_in_memory(model, "int4") and "group_size=8" in repr(model.layers[0].mlp.down_proj)


def test_what_cannot_be_done_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'int5' is not known"):
        load_model(model_dir, quantize="int5")
    keys = {"bits": 8, "group_size": 32}
    quantize(QuantizeConfig(model=str(model_dir), output=tmp_path / "stored", **keys), Console(quiet=True))
    with pytest.raises(ConfigError, match="quantized already"):
        load_model(tmp_path / "stored", quantize="int4")
