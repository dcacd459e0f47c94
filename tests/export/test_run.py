"""The verb from a model directory to what other programs load, and back."""

from __future__ import annotations

import ast
import json
import shlex
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers.processors import TemplateProcessing

from leveret.chat.messages import Message
from leveret.chat.template import ChatTemplate, builtin_template
from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import ConfigError, MissingExtra, TokenizerError
from leveret.export.config import ExportConfig, GgufType
from leveret.export.run import run
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.gguf_file import open_gguf
from leveret.weights.gguf_read import GgufTensors
from leveret.weights.gguf_tokenizer import RULES
from leveret.weights.load import load_model
from leveret.weights.save import save_model

pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "hopper"
    template = builtin_template("chatml")
    tokenizer = train_byte_bpe(
        ["a hare runs, it's quick; 野兔在跑。"] * 8,
        vocab_size=320,
        special_tokens=["<s>", "</s>", *template.special_tokens],
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template.source,
    )
    model = Decoder(
        ModelConfig(
            vocab_size=320, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, eos_token_id=tokenizer.eos_id,
        )
    )  # fmt: skip
    init_weights(model, 0)
    save_model(model.bfloat16(), folder, generation={"temperature": 0.7, "top_p": 0.9})
    tokenizer.save(folder)
    (folder / "tools.json").write_text(json.dumps({"tools": []}))
    return folder


def exported(source: Path, output: Path, **changes: object) -> dict[str, object]:
    config = parse_config(ExportConfig, {"model": str(source), "output": output} | changes, source="test")
    return run(config, QUIET).summary


def test_a_folder_has_the_file_its_modelfile_and_the_commands(directory: Path, tmp_path: Path) -> None:
    summary = exported(directory, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "Modelfile", "README.md", "hopper-bf16.gguf", "run.sh",
    ]  # fmt: skip
    assert summary["type"] == "bf16" and summary["pre_tokenizer"] in dict(RULES)
    keys = open_gguf(tmp_path / "out/hopper-bf16.gguf").keys
    tokenizer = Tokenizer.load(directory)
    assert keys["general.name"] == "hopper"
    assert keys["tokenizer.ggml.eot_token_id"] == tokenizer.id_of("<|im_end|>")
    commands = (tmp_path / "out/run.sh").read_text()
    assert "llama-server -m hopper-bf16.gguf -c 64 --jinja" in commands and "ollama create" in commands


@pytest.mark.parametrize("to", ["gguf", "directory", "mlc"])
def test_the_model_that_is_read_is_not_replaced(directory: Path, tmp_path: Path, to: str) -> None:
    shutil.copytree(directory, tmp_path / "models/hopper")
    for output in (tmp_path / "models/hopper", tmp_path / "models"):
        with pytest.raises(ConfigError, match="would replace"):
            exported(tmp_path / "models/hopper", output, to=to)
    assert (tmp_path / "models/hopper/model.safetensors").is_file()


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", " ", ".hidden"])
def test_a_name_that_names_no_file_here_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="beginning of a file's name"):
        parse_config(ExportConfig, {"model": "m", "output": "o", "name": name}, source="test")


def test_types_may_be_written_as_llama_cpp_writes_them() -> None:
    config = parse_config(ExportConfig, {"model": "m", "output": "o", "type": "Q4_K_M"}, source="test")
    assert config.type == "q4_k_m"


def test_the_template_in_the_file_writes_what_ours_writes(directory: Path, tmp_path: Path) -> None:
    exported(directory, tmp_path / "out")
    written = open_gguf(tmp_path / "out/hopper-bf16.gguf").keys["tokenizer.chat_template"]
    assert "generation -" not in written and "endgeneration" not in written
    turns = [Message("system", "只说中文"), Message("user", "🐇?"), Message("assistant", ""), Message("user", "x")]
    ours = builtin_template("chatml").render(turns, add_generation_prompt=True).text
    assert ChatTemplate(written).render(turns, add_generation_prompt=True).text == ours


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": "0.0", "repeat_penalty": "1.0"}),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 40, "repetition_penalty": 1.2},
            {"temperature": "0.7", "repeat_penalty": "1.2", "top_k": "40", "top_p": "1.0", "min_p": "0.0"},
        ),
    ],
)
def test_ollama_is_told_to_choose_tokens_as_the_model_does_here(
    directory: Path, tmp_path: Path, said: dict[str, object], written: dict[str, str]
) -> None:
    shutil.copytree(directory, tmp_path / "m")
    (tmp_path / "m/generation_config.json").write_text(json.dumps(said))
    exported(tmp_path / "m", tmp_path / "out")
    lines = [line.split() for line in (tmp_path / "out/Modelfile").read_text().splitlines() if "PARAMETER" in line]
    assert {line[1]: line[2] for line in lines if line[1] not in ("num_ctx", "stop")} == written


def test_the_commands_of_a_directory_quote_names_with_spaces(directory: Path, tmp_path: Path) -> None:
    exported(directory, tmp_path / "my models" / "it's one", to="directory", name="a hare")
    card = (tmp_path / "my models" / "it's one" / "README.md").read_text()
    words = [
        shlex.split(line) for line in card.partition("```sh")[2].partition("```")[0].splitlines() if line[:1] != "#"
    ]
    folder = str(tmp_path / "my models" / "it's one")
    assert ["vllm", "serve", folder, "--served-model-name", "a hare"] in words
    (loads,) = [line[2] for line in words if line[:1] == ["python"] and "pipeline" in line[2]]
    assert ast.literal_eval(ast.parse(loads).body[1].value.args[1]) == folder  # type: ignore[attr-defined]


def test_a_template_that_ends_a_reply_with_eos_token_gives_the_modelfile_its_stop(
    directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(directory, tmp_path / "m")
    (tmp_path / "m/chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    exported(tmp_path / "m", tmp_path / "out")
    assert 'PARAMETER stop "</s>"' in (tmp_path / "out/Modelfile").read_text()
    assert "</s>" in (tmp_path / "out/run.sh").read_text()


@pytest.mark.parametrize(
    ("kind", "most"), [("q2_k", 0.35), ("q3_k_m", 0.2), ("q4_k_m", 0.1), ("q5_k_s", 0.05), ("q6_k", 0.03)]
)
def test_k_types_are_made_by_llama_cpp_and_read_back(
    kind: GgufType, most: float, directory: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="the K types need llama-cpp-python")
    exported(directory, tmp_path / "out", type=kind)
    file = open_gguf(tmp_path / f"out/hopper-{kind}.gguf")
    assert file.type_of("blk.0.ffn_gate.weight") == kind.upper()[:4]
    assert not (tmp_path / "out/whole.gguf").exists()
    before, after = load_model(directory).state_dict(), GgufTensors(file)
    for name, value in before.items():
        back = torch.cat([values for _, values in after.blocks(name)]).reshape(value.shape)
        assert (back - value.float()).norm() <= most * value.float().norm(), name


def test_without_llama_cpp_the_error_names_the_extra_and_leaves_nothing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    with pytest.raises(MissingExtra, match=r"leveret\[llama-cpp\]"):
        exported(directory, tmp_path / "out", type="q4_k_m")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_no_rule_fits_is_refused_with_a_text(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leveret.weights import gguf_tokenizer

    monkeypatch.setattr(gguf_tokenizer, "RULES", (("deepest", (r".",)),))
    with pytest.raises(TokenizerError, match=r"'deepest', gives other ids for .* for example"):
        exported(directory, tmp_path / "out")


def test_a_conversation_gets_no_bos_from_llama_cpp_if_its_template_writes_none(directory: Path, tmp_path: Path) -> None:
    """Huozi's case: the tokenizer begins a text with BOS, the template does not; the file says one thing for both."""
    source = tmp_path / "m"
    shutil.copytree(directory, source)
    engine = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    engine.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", engine.token_to_id("<s>"))])
    engine.save(str(source / "tokenizer.json"))
    exported(source, tmp_path / "out")
    assert open_gguf(tmp_path / "out/m-bf16.gguf").keys["tokenizer.ggml.add_bos_token"] is True
    assert "--jinja -cnv --override-kv tokenizer.ggml.add_bos_token=bool:false" in (tmp_path / "out/run.sh").read_text()
    exported(directory, tmp_path / "plain")
    assert "--override-kv" not in (tmp_path / "plain/run.sh").read_text()
