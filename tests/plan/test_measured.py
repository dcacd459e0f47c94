"""A forecast against a run of our own, on this machine as it is.

Memory must be 0.7 to 1.4 of the forecast, for models this small do not fill a machine. Speed must be compared, no more:
what half a second of products and four steps measure beside other work says nothing. docs/guide/plan.md has figures of
a quieter machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = """\
name: small
stages:
  - tokenizer: {documents: [text.txt], vocab_size: 400, template: null}
  - pretrain:
      tokenizer: "@tokenizer"
      documents: [text.txt]
      model: {hidden_size: 256, intermediate_size: 768, num_hidden_layers: 4, num_attention_heads: 4}
      training: {max_steps: 4, sequence_length: 256, rows_per_step: 16, micro_batch_rows: 16}
"""


@pytest.mark.slow
def test_the_memory_of_a_run_is_near_the_forecast_and_its_speed_is_compared(tmp_path: Path) -> None:
    text = "".join(f"Line {n} says that {n} hares run over {n * n} hills; 第{n}只兔子。\n" for n in range(6000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    (tmp_path / "small.yaml").write_text(RECIPE, encoding="utf-8")

    def leveret(*words: str) -> str:
        command = [sys.executable, "-m", "leveret", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    leveret("run", "small.yaml")
    planned = leveret("plan", "small.yaml", "--compare", "--measure", "--devices", "CPU", "--json")
    (stage,) = (stage for stage in json.loads(planned)["stages"] if stage["stage"] == "pretrain")
    ratios = {row["figure"]: row["ratio"] for row in stage["comparison"]}
    assert 0.7 < ratios["peak memory, bytes"] < 1.4
    assert 0 < ratios["tokens per second"] < float("inf")
