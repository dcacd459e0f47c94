"""An adapter is exported apart where llama.cpp's format can say it, else merged, and the command says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from leveret.chat.template import builtin_template
from leveret.config import parse_config
from leveret.console import Console
from leveret.export.config import ExportConfig
from leveret.export.run import run
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.lora import LoraSettings, init_lora, wrap
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.adapter import save_adapter
from leveret.weights.gguf_file import open_gguf
from leveret.weights.load import load_model
from leveret.weights.merged import load_merged
from leveret.weights.save import save_model

pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")


def make(folder: Path, *, dora: bool = False) -> Path:
    """An adapter with its own tokenizer and template, and the model under it; returns the adapter's folder."""
    template = builtin_template("chatml")
    tokenizer = train_byte_bpe(
        ["a hare 野兔"] * 8, vocab_size=310, special_tokens=["<s>", "</s>", *template.special_tokens],
        bos_token="<s>", eos_token="</s>", chat_template=template.source,
    )  # fmt: skip
    model = Decoder(
        ModelConfig(
            vocab_size=310, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.2, eos_token_id=tokenizer.eos_id,
        )
    )  # fmt: skip
    init_weights(model, 0)
    save_model(model, folder / "base")
    tokenizer.save(folder / "base")
    for part in ("self_attn.q_proj", "mlp.up_proj"):
        wrapped = wrap(model, (f"layers.0.{part}",), LoraSettings(rank=2, alpha=4, dora=dora))
        init_lora(part, wrapped, seed=0)
        torch.nn.init.normal_(wrapped[0].lora_B)
    save_adapter(model, folder / "adapter", base=str(folder / "base"))
    tokenizer.save(folder / "adapter")
    return folder / "adapter"


def exported(source: Path, output: Path, console: Console, **keys: object) -> dict[str, Any]:
    given = {"model": str(source), "output": output} | keys
    return run(parse_config(ExportConfig, given, source="test"), console).summary


def test_a_plain_lora_becomes_a_file_of_its_own(tmp_path: Path) -> None:
    adapter = make(tmp_path)
    summary = exported(adapter, tmp_path / "out", Console(quiet=True))
    assert summary["adapter"] == "apart" and summary["matrices"] == 2
    assert open_gguf(tmp_path / "out/adapter-lora.gguf").keys["adapter.type"] == "lora"
    assert "--lora adapter-lora.gguf" in (tmp_path / "out/run.sh").read_text()
    exported(adapter, tmp_path / "named", Console(quiet=True), name="my hare")
    assert "--lora 'my hare-lora.gguf'" in (tmp_path / "named/run.sh").read_text()


def test_what_the_format_cannot_say_is_merged_and_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    adapter = make(tmp_path, dora=True)
    exported(adapter, tmp_path / "out", Console(quiet=True).to_file(log), type="f32")
    assert (tmp_path / "out/adapter-f32.gguf").is_file() and "it is merged into the model" in log.read_text()


def test_merged_on_request_and_for_other_programs(tmp_path: Path) -> None:
    adapter = make(tmp_path)
    exported(adapter, tmp_path / "gguf", Console(quiet=True), adapter="merged")
    assert (tmp_path / "gguf/adapter-bf16.gguf").is_file()
    exported(adapter, tmp_path / "out", Console(quiet=True), to="directory")
    merged, _ = load_merged(adapter)
    after = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(after[name], value) for name, value in merged.state_dict().items())
