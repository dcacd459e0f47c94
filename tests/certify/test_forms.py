"""The same model read by others: llama.cpp, our GGUF reader, peft, bitsandbytes; each passes, and fails when spoilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from leveret.certify.references import short_form, split_adapter
from leveret.console import Console
from leveret.errors import CertificateError, ConfigError, MissingExtra
from leveret.export.config import ExportConfig
from leveret.export.run import run as export
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.lora import LoraSettings
from leveret.model.lora_targets import add_lora
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run as quantize
from leveret.tokenizer.files import Tokenizer
from leveret.weights.adapter import save_adapter
from leveret.weights.load import load_model
from leveret.weights.merged import merge_into_model
from leveret.weights.save import save_model

from .test_run import certify, verdicts

MakeForm = Callable[..., Path]
QUIET = Console(quiet=True)


def gguf(model: Path, kind: str = "f32", name: str = "gguf") -> Path:
    pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")
    output = model.parent / name
    export(ExportConfig(model=str(model), output=output, type=kind), QUIET)
    return next(output.glob("*.gguf"))


def by_llama_cpp(file: Path) -> str:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    return f"llama.cpp:{file}"


def content(certificate: Path) -> Any:
    return json.loads((certificate / "certificate.json").read_text())


def test_a_gguf_file_is_the_model_by_llama_cpp_and_by_our_reader(
    make_form: MakeForm, text: Path, tmp_path: Path
) -> None:
    file = gguf(make_form("a"))
    certify(tmp_path / "a", by_llama_cpp(file), file, text=[text], output=tmp_path / "out")
    assert [form["reader"] for form in content(tmp_path / "out")["forms"]] == ["leveret", "llama.cpp", "leveret"]
    for pair in (0, 1):
        found = verdicts(tmp_path / "out", pair)
        assert found.pop("sampling") == "not compared", "a file says nothing of it"
        assert set(found.values()) == {"same"}
        assert content(tmp_path / "out")["comparisons"][pair]["kind"] == "exact"
    assert content(tmp_path / "out")["comparisons"][1]["figures"]["largest_logit_difference"] == 0


@pytest.mark.parametrize(("kind", "numbers"), [("f16", "16-bit"), ("q8_0", "int8"), ("q4_0", "int4")])
def test_a_gguf_file_is_judged_by_the_types_of_its_matrices(
    make_form: MakeForm, tmp_path: Path, kind: str, numbers: str
) -> None:
    file = gguf(make_form("a"), kind)
    certify(tmp_path / "a", by_llama_cpp(file), file, output=tmp_path / "out")
    assert [pair["kind"] for pair in content(tmp_path / "out")["comparisons"]] == [numbers, numbers]


@pytest.mark.parametrize(("kind", "numbers"), [("q4_k_m", "int4"), ("q2_k", "int2")])
def test_what_llama_cpp_s_quantizer_makes_passes_by_its_own_bounds(
    config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path, kind: str, numbers: str
) -> None:
    model = Decoder(replace(config, hidden_size=256, intermediate_size=256, initializer_range=0.03))
    init_weights(model, 0)
    save_model(model, tmp_path / "a")
    tokenizer.save(tmp_path / "a")
    pytest.importorskip("llama_cpp", reason="its quantizer makes the file")
    file = gguf(tmp_path / "a", kind)
    certify(tmp_path / "a", by_llama_cpp(file), file, output=tmp_path / "out")
    assert [pair["kind"] for pair in content(tmp_path / "out")["comparisons"]] == [numbers, numbers]


def test_a_shorter_context_cuts_the_windows_and_what_is_too_long_is_counted(
    make_form: MakeForm, text: Path, tmp_path: Path
) -> None:
    path = make_form("b")
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | {"max_position_embeddings": 64}))
    with pytest.raises(CertificateError, match="context differ"):
        certify(make_form("a"), by_llama_cpp(gguf(path)), text=[text], output=tmp_path / "out")
    checks = {check["name"]: check for check in content(tmp_path / "out")["comparisons"][0]["checks"]}
    assert "left out, longer than the context" in checks["logits"]["measured"]
    assert [name for name, check in checks.items() if check["verdict"] == "different"] == ["context"]


def test_one_wrong_weight_in_a_gguf_file_is_named_though_llama_cpp_runs_it(make_form: MakeForm, tmp_path: Path) -> None:
    def perturb(model: Decoder) -> None:
        model.layers[1].mlp.down_proj.weight[5, 7] += 0.5

    file = gguf(make_form("b", change=perturb))
    with pytest.raises(CertificateError, match=r"first at text 'english', token 0") as caught:
        certify(make_form("a"), by_llama_cpp(file))
    assert "looked into as Leveret reads the file" in str(caught.value)
    assert "module layers.1.mlp.down_proj" in str(caught.value)


def test_another_rope_base_in_a_gguf_file_is_found_between_modules(make_form: MakeForm) -> None:
    path = make_form("b")
    config = path / "config.json"
    config.write_text(config.read_text().replace("10000.0", "50000.0"))
    file = gguf(path)
    with pytest.raises(CertificateError, match=r"layers\.0\.self_attn\.o_proj .*the difference arises between"):
        certify(make_form("a"), by_llama_cpp(file))


def test_a_changed_template_in_a_gguf_file_fails_at_its_conversation(make_form: MakeForm, tmp_path: Path) -> None:
    path = make_form("b")
    template = path / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<|im_end|>'", "' <|im_end|>'"))
    with pytest.raises(CertificateError, match="token ids differ\n  first at chat 'one question'"):
        certify(make_form("a"), by_llama_cpp(gguf(path)))


@pytest.mark.parametrize("written", [True, False])
def test_a_bos_stands_once_and_one_that_llama_cpp_would_add_is_told(
    make_form: MakeForm, tmp_path: Path, written: bool
) -> None:
    path = make_form("a")
    data = json.loads((path / "tokenizer.json").read_text())
    bos = next(token for token in data["added_tokens"] if token["content"] == "<|endoftext|>")
    single = [{"SpecialToken": {"id": bos["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {bos["content"]: {"id": bos["content"], "ids": [bos["id"]], "tokens": [bos["content"]]}}
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    (path / "tokenizer.json").write_text(json.dumps(data | {"post_processor": processor}))
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": bos["content"]}))
    template = path / "chat_template.jinja"
    template.write_text(("{{- bos_token -}}" if written else "") + template.read_text())
    certify(path, by_llama_cpp(gguf(path)), output=tmp_path / "out")
    assert verdicts(tmp_path / "out")["token ids"] == "same"
    remark = content(tmp_path / "out")["forms"][1].get("remark", "")
    assert ("add_bos_token=bool:false" in remark) == (not written)


def test_a_gguf_file_without_a_template_is_not_the_model(make_form: MakeForm) -> None:
    path = make_form("b")
    (path / "chat_template.jinja").unlink()
    with pytest.raises(CertificateError, match="the second form's template refuses it"):
        certify(make_form("a"), by_llama_cpp(gguf(path)))


def test_another_end_of_sequence_is_found_though_no_logit_shows_it(make_form: MakeForm, tmp_path: Path) -> None:
    path = make_form("b")
    for name in ("generation_config.json", "config.json"):
        values = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(values | {"eos_token_id": 7}))
    for second in (path, f"transformers:{path}", by_llama_cpp(gguf(path))):
        with pytest.raises(CertificateError, match=r"stop ids differ\n  stop ids: .*only the second ends one at 7 "):
            certify(make_form("a"), second, output=tmp_path / "out")
        found = verdicts(tmp_path / "out")
        assert {name for name, verdict in found.items() if verdict == "different"} == {"stop ids"}
    measured = content(tmp_path / "out")["comparisons"][0]["checks"][1]["measured"]
    assert "only the second ends one at 7" in measured


def test_without_llama_cpp_a_file_is_not_compared_in_silence(
    make_form: MakeForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(module: str, *, extra: str, purpose: str) -> None:
        raise MissingExtra(f"{purpose} needs {module}", hint=f'pip install "leveret[{extra}]"')

    file = gguf(make_form("a"))
    monkeypatch.setattr("leveret.certify.by_llama_cpp.require", absent)
    with pytest.raises(MissingExtra) as caught:
        certify(make_form("a"), f"llama.cpp:{file}")
    assert "llama-cpp" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="there is no file"):
        certify(make_form("a"), f"llama.cpp:{file.parent}")


@pytest.fixture
def adapter(make_form: MakeForm, tmp_path: Path) -> Path:
    """An adapter whose change is large enough to see, on the model in `a`."""
    model = load_model(make_form("a"))
    add_lora(model, LoraSettings(rank=4, alpha=8), "all-linear", seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0, 0.05, generator=generator)
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "a"))
    return tmp_path / "adapter"


@pytest.mark.filterwarnings(r"ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's use
def test_an_adapter_is_the_same_here_by_peft_merged_and_on_a_named_model(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the oracle of this test")
    merge_into_model(adapter, tmp_path / "merged")
    forms = [adapter, f"peft:{adapter}", tmp_path / "merged", f"{tmp_path / 'a'}+{adapter}"]
    certify(*forms, output=tmp_path / "out")
    for pair in (0, 1, 2):
        assert set(verdicts(tmp_path / "out", pair).values()) <= {"same", "not compared"}
    with pytest.raises(CertificateError, match=r"module layers\.0\.self_attn\.q_proj"):
        certify(adapter, tmp_path / "a")


@pytest.mark.filterwarnings(r"ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_wrong_number_in_an_adapter_is_named_by_its_linear(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the oracle of this test")
    merge_into_model(adapter, tmp_path / "merged")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.1.mlp.up_proj.lora_B" in name)
    tensors[name][3, 0] += 1
    save_file(tensors, file)
    for form in (adapter, f"peft:{adapter}"):
        with pytest.raises(CertificateError, match=r"module layers\.1\.mlp\.up_proj \(error"):
            certify(tmp_path / "merged", form)


def test_nf4_is_the_same_here_and_by_bitsandbytes(make_form: MakeForm, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="transformers reads nf4 through it")
    config = QuantizeConfig(model=str(make_form("a")), output=tmp_path / "q", method="nf4")
    quantize(config, QUIET)
    certify(tmp_path / "a", tmp_path / "q", f"transformers:{tmp_path / 'q'}", output=tmp_path / "out")
    assert [pair["kind"] for pair in content(tmp_path / "out")["comparisons"]] == ["int4", "int4"]
    file = tmp_path / "q" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.gate_proj.weight.nested_absmax"] *= 8
    save_file(tensors, file, metadata={"format": "pt"})
    for form in (tmp_path / "q", f"transformers:{tmp_path / 'q'}"):
        with pytest.raises(CertificateError, match=r"most at .*module layers\.1\.mlp\.gate_proj"):
            certify(tmp_path / "a", form)


def test_references_are_cut_where_files_are(tmp_path: Path) -> None:
    (tmp_path / "c++").mkdir()
    assert split_adapter(str(tmp_path / "c++")) == (str(tmp_path / "c++"), None)
    assert split_adapter(f"owner/name+{tmp_path}") == ("owner/name", str(tmp_path))
    assert short_form(f"llama.cpp:{tmp_path}/a/b/m.gguf") == "llama.cpp:b/m.gguf"
    assert short_form("http://user:secret@host:8000/v1") == "host:8000/v1"
    assert short_form("http://host:8000/v1") == "http://host:8000/v1"
