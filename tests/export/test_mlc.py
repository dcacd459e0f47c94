"""MLC-LLM's configs: the size of a 1.1 billion model in 4 bits, and conversations as the template writes them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from leveret.chat.messages import Message
from leveret.chat.template import BUILTIN_NAMES, builtin_template
from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import ConfigError
from leveret.export.config import ExportConfig
from leveret.export.mlc import cache_bytes, conversation_of, weight_bytes
from leveret.export.ollama import learn_pieces
from leveret.export.run import run
from leveret.model.config import ModelConfig, MoeConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.save import save_model

HARE = ModelConfig(
    family="mistral", vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
    num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=32768, sliding_window=4096,
)  # fmt: skip


def trained(name: str) -> Tokenizer:
    template = builtin_template(name)
    return train_byte_bpe(
        ["a hare 野兔"] * 8,
        vocab_size=320,
        special_tokens=list(dict.fromkeys(["<s>", "</s>", *template.special_tokens])),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template.source,
    )


def as_mlc_writes(conversation: dict[str, Any], turns: list[tuple[str, str]], system: str | None) -> str:
    """The prompt, by the rules in the head of MLC-LLM's conversation_protocol.py."""
    message = conversation["system_message"] if system is None else system
    text = conversation["system_template"].replace("{system_message}", message)
    seps = conversation["seps"] * (2 if len(conversation["seps"]) == 1 else 1)
    for role, content in turns:
        written = conversation["role_templates"][role].replace(f"{{{role}_message}}", content)
        text += conversation["roles"][role] + conversation["role_content_sep"] + written + seps[role == "assistant"]
    return text + conversation["roles"]["assistant"] + conversation["role_empty_sep"]


@pytest.mark.parametrize("name", BUILTIN_NAMES)
@pytest.mark.parametrize("system", [None, "只说中文。"])
def test_a_conversation_is_written_as_the_template_does(name: str, system: str | None) -> None:
    template, tokenizer = builtin_template(name), trained(name)
    conversation = conversation_of(template, learn_pieces(template, tokenizer.special_tokens), tokenizer)
    assert conversation is not None
    if system is not None and "{system_message}" not in conversation["system_template"]:
        return
    turns = [("user", "a\n"), ("assistant", "二"), ("user", "🐇"), ("assistant", "4"), ("user", "5")]
    told = system if system is not None else conversation["system_message"]
    messages = [Message("system", told)] if told else []
    messages += [Message(role, content) for role, content in turns]
    ours = template.render(messages, add_generation_prompt=True, variables=tokenizer.special_tokens).text
    assert as_mlc_writes(conversation, turns, system) == ours
    assert conversation["stop_token_ids"] == list(template.stop_ids(tokenizer))


def test_a_model_of_hares_shape_takes_six_tenths_of_a_gigabyte_in_4_bits() -> None:
    parameters = 22 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 5632) + 2 * 32000 * 2048
    norms = (2 * 22 + 1) * 2048
    assert weight_bytes(HARE, "q4f16_1") == parameters * 4.5 / 8 + 2 * norms
    assert round(weight_bytes(HARE, "q4f16_1") / 1e9, 2) == 0.63
    assert weight_bytes(HARE, "q0f16") == 2 * (parameters + norms)
    assert weight_bytes(HARE, "q4f32_1") == parameters * 5 / 8 + 4 * norms
    assert cache_bytes(HARE, "q4f16_1", 2048) == 2 * 22 * 8 * 64 * 2048 * 2


def test_groups_that_are_not_full_count_whole_and_routers_stay_whole() -> None:
    tiny = ModelConfig(
        family="mixtral", vocab_size=10, hidden_size=48, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, moe=MoeConfig(num_experts=3, experts_per_token=1),
    )  # fmt: skip
    row = {48: 2 * (16 + 2), 64: 2 * (16 + 2)}  # two groups: 32 numbers in 16 bytes, and a scale
    attention = 4 * 48 * row[48]
    experts = 3 * (2 * 64 * row[48] + 48 * row[64])
    whole = 2 * (3 * 48 + 3 * 48)
    assert weight_bytes(tiny, "q4f16_1") == 2 * 10 * row[48] + attention + experts + whole


def make(folder: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "family": "mistral", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "eos_token_id": 1,
    }  # fmt: skip
    model = Decoder(ModelConfig(**(settings | changes)))
    init_weights(model, 0)
    save_model(model, folder, generation={"do_sample": True, "temperature": 0.6})
    trained("hare").save(folder)
    return folder


def exported(source: Path, output: Path, **keys: object) -> dict[str, Any]:
    given = {"model": str(source), "output": output, "to": "mlc", "repository": "me/x"} | keys
    return run(parse_config(ExportConfig, given, source="test"), Console(quiet=True)).summary


def test_the_folder_has_both_configs_the_tokenizer_and_the_commands(tmp_path: Path) -> None:
    summary = exported(make(tmp_path / "hopper"), tmp_path / "out", mlc_context=128)
    chat = json.loads((tmp_path / "out/mlc-chat-config.json").read_text())
    package = json.loads((tmp_path / "out/mlc-package-config.json").read_text())
    assert (chat["model_type"], chat["quantization"], chat["context_window_size"]) == ("mistral", "q4f16_1", 128)
    assert chat["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"] and chat["temperature"] == 0.6
    assert all((tmp_path / "out" / file).is_file() for file in chat["tokenizer_files"])
    assert chat["conv_template"]["system_message"] == "You are a helpful assistant."
    (entry,) = package["model_list"]
    assert package["device"] == "android" and entry["model"] == "HF://me/hopper-q4f16_1-MLC"
    assert entry["estimated_vram_bytes"] == summary["running_bytes"] > summary["bytes"]
    fake = tmp_path / "bin/mlc_llm"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$(basename "$PWD"): $*"\n')
    fake.chmod(0o755)
    (tmp_path / "mlc/android/MLCChat").mkdir(parents=True)
    environment = os.environ | {
        "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}",
        "MLC_LLM_SOURCE_DIR": str(tmp_path / "mlc"),
    }
    done = subprocess.run(
        ["sh", "out/build.sh", "hopper"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    model = (tmp_path / "hopper").resolve()
    wanted = f"out: convert_weight {model} --model-type mistral --quantization q4f16_1 -o .\n"
    assert done.stdout.startswith(wanted) and (tmp_path / "mlc/android/MLCChat/mlc-package-config.json").is_file()


def test_a_name_with_a_quote_breaks_no_script(tmp_path: Path) -> None:
    exported(make(tmp_path / "m"), tmp_path / "out", name="the hare's")
    subprocess.run(["sh", "-n", tmp_path / "out/build.sh"], check=True)


def test_networks_that_mlc_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no RoPE of type linear"):
        exported(make(tmp_path / "m", rope=RopeConfig(kind="linear", factor=2.0)), tmp_path / "out")
    with pytest.raises(ConfigError, match="no lingowhale"):
        exported(make(tmp_path / "n", family="lingowhale"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
