"""A directory for other programs: transformers loads it and says the same, and the checks find what is wrong."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from leveret.chat.messages import Message
from leveret.chat.template import BUILTIN_NAMES, ChatTemplate, builtin_template
from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import ConfigError, TokenizerError
from leveret.export.checks import as_webui_renders, check_directory
from leveret.export.config import ExportConfig
from leveret.export.directory import write_directory
from leveret.export.run import run
from leveret.model.config import ModelConfig, MoeConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.init import init_weights
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.load import load_model
from leveret.weights.save import save_model

FAMILIES = ["mistral", "llama", "aquila", "mixtral", "lingowhale"]
IDS = [1, 5, 300, 7, 40, 260, 90]


def trained(name: str = "chatml") -> Tokenizer:
    template = builtin_template(name)  # type: ignore[arg-type]
    return train_byte_bpe(
        ["a hare runs, it's quick; 野兔在跑。"] * 8,
        vocab_size=320,
        special_tokens=list(dict.fromkeys(["<s>", "</s>", *template.special_tokens])),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template.source,
    )


def make(folder: Path, family: str = "llama", dtype: Any = torch.float32, name: str = "chatml", **more: Any) -> Path:
    settings: dict[str, Any] = {
        "family": family, "vocab_size": 328, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
        "norm_scales_in_float32": family_for(family).norm_scales_in_float32, "eos_token_id": 1, "bos_token_id": 0,
        "moe": MoeConfig(num_experts=4, experts_per_token=2) if family == "mixtral" else None,
    }  # fmt: skip
    model = Decoder(ModelConfig(**(settings | more)))
    init_weights(model, 0)
    save_model(model.to(dtype), folder)
    trained(name).save(folder)
    return folder


def exported(source: Path, output: Path, **keys: object) -> dict[str, Any]:
    given = {"model": str(source), "output": output, "to": "directory"} | keys
    return run(parse_config(ExportConfig, given, source="test"), Console(quiet=True)).summary


def edit(file: Path, **changes: object) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value != "remove"}))


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_every_family_and_gives_the_same_logits_ids_and_prompt(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    source = make(tmp_path / "m", family)
    summary = exported(source, tmp_path / "out")
    assert summary["failed"] == 0 and summary["checks"] >= 13
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        assert torch.allclose(
            theirs.eval()(torch.tensor([IDS])).logits, load_model(source)(torch.tensor([IDS])), atol=1e-5
        )
    turns = [Message("user", "野兔?"), Message("assistant", "x"), Message("user", "🐇")]
    ours = Tokenizer.load(source)
    template = ChatTemplate(ours.chat_template or "")
    spoken = [{"role": turn.role, "content": turn.content} for turn in turns]
    prompt = tokenizer.apply_chat_template(spoken, add_generation_prompt=True, tokenize=False)
    assert prompt == template.render(turns, add_generation_prompt=True, variables=ours.special_tokens).text
    assert theirs.generation_config.eos_token_id == [ours.eos_id, ours.id_of("<|im_end|>")]
    assert tokenizer.model_max_length == 128


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_another_dtype_is_said_in_config_and_files(dtype: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    exported(make(tmp_path / "m", "aquila"), tmp_path / "out", type=dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert str(theirs.dtype) == {"f16": "torch.float16", "bf16": "torch.bfloat16"}[dtype]


def test_shards_have_an_index_that_transformers_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leveret.weights import rewrite

    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    source = make(tmp_path / "m", "mixtral")
    monkeypatch.setitem(rewrite.write_tensors.__kwdefaults__, "shard_bytes", 200_000)
    summary = exported(source, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2 and summary["failed"] == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        assert torch.allclose(theirs(torch.tensor([IDS])).logits, load_model(source)(torch.tensor([IDS])), atol=1e-5)


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_every_template_says_the_same_in_text_generation_webui(name: str, tmp_path: Path) -> None:
    source = make(tmp_path / "m", name=name)
    target = tmp_path / "out"
    target.mkdir()
    report = write_directory(source, target)
    assert [finding for finding in report.findings if not finding.passed] == []
    plain = (target / "chat_template.jinja").read_text()
    assert plain == json.loads((target / "tokenizer_config.json").read_text())["chat_template"]
    assert "generation %}" not in plain and "generation -%}" not in plain


def test_what_users_bring_is_mended_and_told(tmp_path: Path) -> None:
    """A chat model with the defects of real releases: code, a base model's eos, a template in one place only."""
    source = make(tmp_path / "m", "lingowhale")
    edit(source / "config.json", auto_map={"AutoModel": "modeling.X"}, eos_token_id=1, bos_token_id="remove")
    edit(source / "generation_config.json", eos_token_id=1, bos_token_id="remove")
    (source / "modeling.py").write_text("raise SystemExit")
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    edit(source / "tokenizer_config.json", chat_template=template)
    (tmp_path / "out").mkdir()
    report = write_directory(source, tmp_path / "out")
    told = "\n".join(report.mended)
    for expected in ("lingowhale is written as llama", "auto_map", "says LlamaForCausalLM", "{% generation %}",
                     "eos_token_id [1]: ordinary tokens", "model_max_length"):  # fmt: skip
        assert expected in told, told
    assert all(finding.passed for finding in report.findings) and not (tmp_path / "out/modeling.py").exists()


BREAKS: dict[str, tuple[str, dict[str, object]]] = {
    "architecture": ("config.json", {"architectures": ["AquilaModel"]}),
    "no code": ("config.json", {"auto_map": {"AutoModel": "modeling.X"}}),
    "dtype": ("config.json", {"torch_dtype": "bfloat16"}),
    "rows": ("config.json", {"vocab_size": 400}),
    "eos ids": ("generation_config.json", {"eos_token_id": 1}),
    "token ids": ("generation_config.json", {"pad_token_id": 328}),
    "sampling": ("generation_config.json", {"temperature": 0.8}),
    "tokenizer": ("config.json", {"vocab_size": 100}),
    "special tokens": ("config.json", {"bos_token_id": 9}),
    "model_max_length": ("tokenizer_config.json", {"model_max_length": 10**30}),
    "template, both places": ("tokenizer_config.json", {"chat_template": "{{ messages }}"}),
    "a reply ends (vLLM)": ("generation_config.json", {"eos_token_id": 1}),
}


@pytest.mark.parametrize("name", list(BREAKS))
def test_each_check_finds_its_defect(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_directory(make(tmp_path / "m"), tmp_path / "out")
    assert all(finding.passed for finding in check_directory(tmp_path / "out"))
    file, changes = BREAKS[name]
    edit(tmp_path / "out" / file, **changes)
    assert name in [finding.name for finding in check_directory(tmp_path / "out") if not finding.passed]


EOS_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Q: ' + message['content'] + '\\n' }}"
    "{% else %}{{ 'A:' + message['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)


def test_a_reply_that_ends_with_eos_token_ends_for_other_programs_too(tmp_path: Path) -> None:
    source = make(tmp_path / "m", eos_token_id=0)
    (source / "chat_template.jinja").write_text(EOS_TEMPLATE)
    (tmp_path / "out").mkdir()
    write_directory(source, tmp_path / "out")
    said = {finding.name: finding for finding in check_directory(tmp_path / "out")}["a reply ends (vLLM)"]
    assert said.passed and said.said == "'</s>'"
    for name in ("config.json", "generation_config.json"):
        edit(tmp_path / "out" / name, eos_token_id=0)
    said = {finding.name: finding for finding in check_directory(tmp_path / "out")}["a reply ends (vLLM)"]
    assert not said.passed and f"[{trained().eos_id}] end a reply" in said.said


def test_a_template_that_ends_no_reply_is_found(tmp_path: Path) -> None:
    source = make(tmp_path / "m")
    (source / "chat_template.jinja").write_text(EOS_TEMPLATE.replace(" + eos_token", ""))
    (tmp_path / "out").mkdir()
    report = write_directory(source, tmp_path / "out")
    assert "a reply ends (vLLM)" in [finding.name for finding in report.findings if not finding.passed]


def test_a_head_that_vllm_has_no_kernel_for_and_a_bin_file_are_found(tmp_path: Path) -> None:
    source = make(tmp_path / "m", hidden_size=64)
    assert exported(source, tmp_path / "out")["failed"] == 1
    tensors = load_file(tmp_path / "out/model.safetensors")
    (tmp_path / "out/model.safetensors").unlink()
    torch.save(tensors, tmp_path / "out/pytorch_model.bin")
    failed = [finding.name for finding in check_directory(tmp_path / "out") if not finding.passed]
    assert failed == ["head size (vLLM)", "safetensors"]
    (tmp_path / "out/generation_config.json").write_text("[")
    assert any("generation" in finding.name and "CorruptedFile" in finding.said
               for finding in check_directory(tmp_path / "out"))  # fmt: skip


def test_a_quantized_model_goes_as_it_is(tmp_path: Path) -> None:
    from leveret.quantize.config import QuantizeConfig
    from leveret.quantize.run import run as quantize

    source = make(tmp_path / "m", "mistral")
    given = {"model": str(source), "output": tmp_path / "int4", "group_size": 32, "search": False}
    quantize(parse_config(QuantizeConfig, given, source="test"), Console(quiet=True))
    exported(tmp_path / "int4", tmp_path / "out")
    before, after = load_file(tmp_path / "int4/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert "quantization_config" in json.loads((tmp_path / "out/config.json").read_text())


def test_the_webui_check_follows_its_source(tmp_path: Path) -> None:
    """From modules/models_settings.py: eos and bos by their text, no raise_exception, no generation block."""
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    assert as_webui_renders("{{ bos_token }}|{{ eos_token }}", settings) == "<s>|</s>"
    assert as_webui_renders("{{ raise_exception('no') }}x", settings) == "x"
    assert "TemplateSyntaxError" in as_webui_renders("{% generation %}x{% endgeneration %}", settings)
    assert as_webui_renders("a{% if add_generation_prompt %}b{% endif %}", settings) == "a"


def test_a_folder_without_a_tokenizer_and_types_of_gguf_are_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "m", rope=RopeConfig(kind="linear", factor=2.0))
    with pytest.raises(ConfigError, match="q8_0 is for to=gguf"):
        exported(source, tmp_path / "out", type="q8_0")
    (source / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        exported(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_tells_both_languages_what_was_exported_and_keeps_what_was_there(tmp_path: Path) -> None:
    source = make(tmp_path / "hopper")
    (source / "README.md").write_text("# My hare\n\nwritten by me\n")
    exported(source, tmp_path / "out", card=source / "README.md")
    for file in (tmp_path / "out/README.md", source / "README.md"):
        text = file.read_text("utf-8")
        assert text.startswith("# My hare\n\nwritten by me\n") and "model.safetensors" in text
        assert "用于 transformers, vLLM" in text and "vllm serve" in text and " MB |" in text
    before = (source / "README.md").read_text("utf-8")
    exported(source, tmp_path / "out", card=source / "README.md")
    assert (source / "README.md").read_text("utf-8") == before
