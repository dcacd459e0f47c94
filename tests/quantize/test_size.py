"""How large a file becomes, from shapes alone, and the embedding in eight bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import ConfigError
from leveret.model.config import ModelConfig
from leveret.precision.gptq_layout import GptqStorage
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run
from leveret.quantize.tensors import empty_quantized
from leveret.weights.load import load_model

MakeDirectory = Callable[..., Path]
HARE = ModelConfig(
    family="mistral", vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
    num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip


def gigabytes(storage: GptqStorage, config: ModelConfig) -> float:
    """Of all tensors that are stored, with bfloat16 for what is whole; no memory is taken."""
    model = empty_quantized(config, storage).state_dict()
    wide = {name: tensor.numel() * 2 for name, tensor in model.items() if tensor.dtype == torch.float32}
    return (sum(wide.values()) + sum(tensor.nbytes for name, tensor in model.items() if name not in wide)) / 1e9


def test_a_model_of_1_1_billion_in_four_bits_has_at_most_0_62_gigabytes() -> None:
    small = GptqStorage(bits=4, group_size=128, symmetric=True, lm_head=True, embedding_in_8_bits=True)
    assert 0.60 < gigabytes(small, HARE) <= 0.62


def test_what_every_reader_of_gptq_takes_is_larger_by_the_embedding_and_the_head() -> None:
    head_whole = GptqStorage(bits=4, group_size=128, symmetric=True)
    head_too = GptqStorage(bits=4, group_size=128, symmetric=True, lm_head=True)
    assert gigabytes(head_whole, HARE) == pytest.approx(0.780, abs=0.002)
    assert gigabytes(head_too, HARE) == pytest.approx(0.683, abs=0.002)


def quantize(source: Path, output: Path, **changes: object) -> None:
    values = {"model": str(source), "output": output, "group_size": 32, "quantize_embedding": True} | changes
    run(parse_config(QuantizeConfig, values, source="test"), Console(quiet=True))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_in_eight_bits_is_read_back(
    make_directory: MakeDirectory, tmp_path: Path, tied: bool, dtype: str | None
) -> None:
    source = make_directory(tie_word_embeddings=tied)
    quantize(source, tmp_path / "q", other_dtype=dtype)
    found, whole = load_model(tmp_path / "q"), load_model(source)
    stored = torch.bfloat16 if dtype else torch.float32
    assert found.embed_tokens.weight.dtype == stored and not hasattr(found.embed_tokens, "weight_scale")
    assert (found.lm_head.weight is found.embed_tokens.weight) == tied
    wanted = whole.embed_tokens.weight.detach()
    assert 0 < float((found.embed_tokens.weight.detach() - wanted).norm() / wanted.norm()) < 0.01
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert config["torch_dtype"] == str(stored)[6:] and config["quantization_config"]["embedding_bits"] == 8
    assert load_model(tmp_path / "q", dtype="float16").embed_tokens.weight.dtype == torch.float16


def test_the_numbers_on_disk_times_the_scales_are_the_embedding(make_directory: MakeDirectory, tmp_path: Path) -> None:
    quantize(make_directory(), tmp_path / "q")
    stored = load_file(tmp_path / "q" / "model.safetensors")
    numbers, scale = stored["model.embed_tokens.weight"], stored["model.embed_tokens.weight_scale"]
    assert numbers.dtype == np.int8 and numbers.shape[:2] == (1, len(scale)) and scale.shape[1] == 1
    weight = load_model(tmp_path / "q").embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(weight, numbers[0].astype(np.float32) * scale)


def test_the_perplexity_after_is_that_of_what_was_written(make_directory: MakeDirectory, tmp_path: Path) -> None:
    from leveret.engine.perplexity import perplexity, windows_from_files
    from leveret.tokenizer.files import Tokenizer

    text = tmp_path / "text.txt"
    text.write_text("a hare runs over the field, 野兔在跑。" * 20, encoding="utf-8")
    quantize(make_directory(), tmp_path / "q", text=[text], text_tokens=200)
    report = json.loads((tmp_path / "q" / "quantization.json").read_text())
    windows = windows_from_files([text], Tokenizer.load(tmp_path / "q"), context_tokens=128, most_tokens=200)
    assert report["perplexity_after"] == pytest.approx(perplexity(load_model(tmp_path / "q"), windows), rel=1e-5)


def test_no_other_reader_tries_such_a_file(make_directory: MakeDirectory, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    quantize(make_directory(), tmp_path / "q")
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "q")


@pytest.mark.parametrize("method", ["nf4", "awq"])
def test_layouts_without_room_for_it_are_refused(method: str) -> None:
    values = {"model": "m", "output": "o", "method": method, "calibration": ["x"], "quantize_embedding": True}
    with pytest.raises(ConfigError, match="leaves the embedding whole"):
        parse_config(QuantizeConfig, values, source="test")
