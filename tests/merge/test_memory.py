"""What a merge needs in memory does not grow with the models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from leveret.console import Console
from leveret.merge.config import MergeConfig
from leveret.merge.run import run
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.trainer.memory import peak_memory_bytes
from leveret.weights.writer import WeightWriter

folder, rows, method = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
config = ModelConfig(vocab_size=rows, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
                     num_attention_heads=4)
family = family_for("mistral")
with torch.device("meta"):
    shapes = {family.stored_name(name): tuple(value.shape) for name, value in Decoder(config).state_dict().items()}
for name in ("base", "a", "b"):
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(family.config_to_hf(config)))
    with WeightWriter(folder / name, {key: (torch.bfloat16, shape) for key, shape in shapes.items()}) as writer:
        for key, shape in shapes.items():
            size = torch.Size(shape).numel()
            for start in range(0, size, 1 << 18):
                writer.write(key, start, torch.randn(min(1 << 18, size - start)).bfloat16())
base = {"base": str(folder / "base")} if method == "ties" else {}
run(MergeConfig(models=[str(folder / "a"), str(folder / "b")], output=folder / "out", method=method, **base),
    Console(quiet=True))
print(peak_memory_bytes(torch.device("cpu")))
"""


def peak_mib(folder: Path, rows: int, method: str) -> float:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(rows), method], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1]) / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_tensor_twenty_times_as_large_needs_little_more_memory(tmp_path: Path, method: str) -> None:
    # 100,000 rows of 256 values: 51 MB in bf16, 102 MB in float32, for each model and each of two tensors.
    small, large = (peak_mib(tmp_path / str(rows), rows, method) for rows in (5_000, 100_000))
    assert large - small < 60
