"""A recipe whose model and data do not exist yet, and a place to run `leveret plan` in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leveret.cli.main import main

RECIPE = """\
name: life
stages:
  - prepare: {documents: [text.txt]}
  - tokenizer: {documents: ["@prepare/text.train.jsonl"], vocab_size: 4096}
  - pretrain:
      tokenizer: "@tokenizer"
      documents: ["@prepare/text.train.jsonl"]
      model: {hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4}
      training: {max_steps: 100, sequence_length: 128, rows_per_step: 8, micro_batch_rows: 4}
  - finetune:
      model: "@pretrain/model"
      data: [samples.jsonl]
      training: {num_epochs: 2, sequence_length: 64, rows_per_step: 4, micro_batch_rows: 4}
  - quantize: {model: "@finetune/model", bits: 4, group_size: 32}
  - serve: {model: "@quantize", max_concurrent_requests: 4}
"""


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with life.yaml and samples.jsonl (40,000 bytes)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "life.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "samples.jsonl").write_text("x" * 40_000, encoding="utf-8")
    return tmp_path


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run `leveret plan ... --json`; its stages by name."""

    def call(*words: str) -> dict[str, Any]:
        assert main(["plan", *words, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        return {stage["stage"]: stage for stage in data["stages"]}

    return call
