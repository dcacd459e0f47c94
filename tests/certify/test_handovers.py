"""What goes wrong when a model is handed over, done on purpose: the certificate must fail, and say where."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leveret.console import Console
from leveret.errors import CertificateError
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run as quantize
from leveret.tokenizer.files import Tokenizer
from leveret.weights.merged import merge_into_model
from leveret.weights.save import save_model

from .test_forms import adapter, by_llama_cpp, content, gguf
from .test_run import certify, verdicts

__all__ = ["adapter"]

MakeForm = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings(r"ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's use
QUIET = Console(quiet=True)


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.txt"
    path.write_text("The hare runs over the field, and nobody catches it. 野兔在清晨的田野里奔跑。\n" * 40)
    return path


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_quantization_passes_and_a_wrong_scale_is_named(
    make_form: MakeForm, tmp_path: Path, calibration: Path, method: str
) -> None:
    config = QuantizeConfig(
        model=str(make_form("a")),
        output=tmp_path / "q",
        method=method,
        group_size=32,
        calibration=[calibration],
        calibration_tokens=1024,
    )
    quantize(config, QUIET)
    certify(tmp_path / "a", tmp_path / "q", output=tmp_path / "out")
    assert content(tmp_path / "out")["comparisons"][0]["kind"] == "int4"
    file = tmp_path / "q" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.scales"] *= 4
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CertificateError, match=r"most at .*module layers\.0\.mlp\.up_proj"):
        certify(tmp_path / "a", tmp_path / "q")


def test_an_embedding_in_eight_bits_is_a_form_like_others(make_form: MakeForm, tmp_path: Path) -> None:
    config = QuantizeConfig(
        model=str(make_form("a")), output=tmp_path / "q", bits=8, group_size=32, quantize_embedding=True
    )
    quantize(config, QUIET)
    certify(tmp_path / "a", tmp_path / "q")


def test_two_ids_that_changed_places_are_found_at_the_first_text_that_has_one(
    make_form: MakeForm, tokenizer: Tokenizer
) -> None:
    path = make_form("b")
    data = json.loads((path / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["W"], vocabulary["Z"] = vocabulary["Z"], vocabulary["W"]
    (path / "tokenizer.json").write_text(json.dumps(data))
    wanted = tokenizer.encode("What is")[0]
    with pytest.raises(CertificateError, match=rf"token ids differ\n  first at chat 'one question', .*id {wanted} "):
        certify(make_form("a"), path)


def test_a_gguf_file_whose_tokenizer_lost_a_merge_gives_other_ids(make_form: MakeForm) -> None:
    path = make_form("b")
    data = json.loads((path / "tokenizer.json").read_text())
    data["model"]["merges"].remove(next(merge for merge in data["model"]["merges"] if not "".join(merge).isascii()))
    (path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CertificateError, match=r"token ids differ\n  first at text 'chinese', token .* against id"):
        certify(make_form("a"), by_llama_cpp(gguf(path)))


def test_an_adapter_on_another_base_is_not_what_was_merged(make_form: MakeForm, adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="it does not look at the base; our loader warns")

    def drift(model: Decoder) -> None:
        model.layers[0].mlp.down_proj.weight.add_(0.01)

    merge_into_model(adapter, tmp_path / "right")
    make_form("a", change=drift)  # after the adapter was trained on it
    with pytest.raises(CertificateError, match=r"module layers\.0\.mlp\.down_proj"):
        certify(tmp_path / "right", f"peft:{adapter}")


def test_an_adapter_saved_empty_is_the_base_and_not_the_adapter(adapter: Path, tmp_path: Path) -> None:
    merge_into_model(adapter, tmp_path / "merged")
    file = adapter / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)
    certify(adapter, tmp_path / "a")
    with pytest.raises(CertificateError, match=r"module layers\.0\.self_attn\.q_proj "):
        certify(tmp_path / "merged", adapter)


def test_a_tensor_that_transformers_does_not_find_is_named(make_form: MakeForm, tmp_path: Path) -> None:
    """It fills it with random numbers and goes on."""
    pytest.importorskip("transformers")
    path = make_form("b")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CertificateError, match=r"module layers\.1\.self_attn\.v_proj"):
        certify(make_form("a"), f"transformers:{path}")


def test_a_head_that_is_taken_for_the_embedding_is_named(make_form: MakeForm, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path = make_form("b")
    values = json.loads((path / "config.json").read_text())
    assert not values["tie_word_embeddings"]
    tensors = load_file(path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": True}))
    for form in (path, f"transformers:{path}"):
        with pytest.raises(CertificateError, match=r"module lm_head "):
            certify(make_form("a"), form)


def test_a_row_of_a_new_token_that_was_not_saved_is_found_where_the_token_stands(
    make_form: MakeForm, tokenizer: Tokenizer
) -> None:
    start = tokenizer.special_ids["<|im_start|>"]

    def forget(model: Decoder) -> None:
        model.embed_tokens.weight[start] = 0

    with pytest.raises(CertificateError, match=r"first at chat 'one question', token 0: .*module embed_tokens"):
        certify(make_form("a"), make_form("b", change=forget))


def test_an_expert_that_is_not_the_same_is_found(config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = Decoder(replace(config, family="mixtral", moe=MoeConfig(num_experts=4, experts_per_token=2)))
    init_weights(model, 0)
    for name in ("a", "b"):
        save_model(model, tmp_path / name)
        tokenizer.save(tmp_path / name)
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if n.startswith("layers.1") and "expert" in n).mul_(1.5)
    with pytest.raises(CertificateError, match=r"layers\.1"):
        certify(tmp_path / "a", tmp_path / "b", output=tmp_path / "out")
    assert verdicts(tmp_path / "out")["logits"] == "different"
