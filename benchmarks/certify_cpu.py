"""Certifying a model of 20 million parameters in six forms on a CPU: how long `leveret certify` takes, form by form.

    python benchmarks/certify_cpu.py [--limit SECONDS] [--rounds N] [--json FILE] [--quick]

A random Mistral (hidden 384, 9 layers, vocabulary 8,192 of a tokenizer trained here on this project's own files) is
written as a training checkpoint and its directory, rounded to 4 bits, put into NF4, and exported to GGUF, off the
clock. On the clock is the command as a user gives it, in a process of its own, imports included: every form against
the checkpoint, with up to 4,096 tokens of text. There is no peer: no other program compares these. Checked: that every
form has the verdict it should have, and, with one weight of the directory changed, that the certificate fails and names
it; with --limit also that no round took longer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from leveret.console import Console
from model_shape import Shape
from side_by_side import machine

SHAPE = Shape(
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=9,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=8192,
    max_position_embeddings=1024,
)
QUICK = Shape(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=600, max_position_embeddings=1024)
ROOT = Path(__file__).parents[1]
WRONG = ("layers.1.mlp.up_proj", 5, 7)
"""The weight that is changed."""


def main() -> int:
    """Make the forms, time the command, check what it says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="fail when a round takes longer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--quick", action="store_true", help="a toy model and one round: does the script still work?")
    options = parser.parse_args()
    console, rounds = Console(), 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_forms(QUICK if options.quick else SHAPE, folder)
        forms = {
            "checkpoint": "run/checkpoints", "directory": "run/model", "transformers": "transformers:run/model",
            "int4": "int4", "nf4": "nf4", "llama.cpp": f"llama.cpp:gguf/{next((folder / 'gguf').glob('*.gguf')).name}",
        }  # fmt: skip
        timed = [certify(folder, list(forms.values())) for _ in range(rounds)]
        checks = judged(forms, timed[-1][1])
        spoil(folder / "run/model")
        failed = certify(folder, [forms["checkpoint"], forms["directory"]])[1]
    module, row, _ = WRONG
    culprit = ((failed["comparisons"][0]["parting"] or {}).get("module")) or {}
    named = culprit.get("module") == module and f"outputs {row}" in culprit.get("reason", "")
    checks["a wrong weight fails and is named"] = None if named and not failed["passed"] else str(culprit)
    seconds = [taken for taken, _ in timed]
    if options.limit is not None:
        checks[f"under {options.limit:g} s"] = None if max(seconds) <= options.limit else f"{max(seconds):.1f} s"
    return report(console, list(forms), timed, checks, options.json)


def make_forms(shape: Shape, folder: Path) -> None:
    """The model in all its forms, and a text to measure on."""
    import torch

    from leveret.export.config import ExportConfig
    from leveret.export.run import run as export
    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights
    from leveret.quantize.config import QuantizeConfig
    from leveret.quantize.run import run as quantize
    from leveret.trainer.adamw import AdamW
    from leveret.trainer.checkpoint import Checkpoints
    from leveret.trainer.config import TrainingConfig
    from leveret.weights.load import load_model
    from leveret.weights.save import save_model

    quiet = Console(quiet=True)
    guides = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/guide").rglob("*.md"))]
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))]
    tokenizer = trained_tokenizer(guides + sources, shape.vocab_size)
    (folder / "text.txt").write_text("\n".join(guides)[:20_000], encoding="utf-8")
    config = ModelConfig(
        initializer_range=0.04,
        eos_token_id=tokenizer.special_ids["<|im_end|>"],
        **vars(shape) | {"vocab_size": tokenizer.vocab_size},
    )
    model = Decoder(config)
    init_weights(model, seed=0)
    save_model(model, folder / "run/model")
    tokenizer.save(folder / "run/model")
    optimizer = AdamW(load_model(folder / "run/model"), TrainingConfig(max_steps=1), dtype=torch.float32)
    Checkpoints(folder / "run/checkpoints", identity={}, keep=1, console=quiet).save(1, optimizer)
    optimizer.close()
    group = 32 if shape is QUICK else 128
    source = str(folder / "run/model")
    quantize(QuantizeConfig(model=source, output=folder / "int4", bits=4, group_size=group, search=False), quiet)
    quantize(QuantizeConfig(model=source, output=folder / "nf4", method="nf4"), quiet)
    export(ExportConfig(model=source, output=folder / "gguf", type="f32"), quiet)


def trained_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """Byte-level BPE with ChatML's template."""
    from leveret.chat.template import builtin_template
    from leveret.tokenizer.train import train_byte_bpe

    template = builtin_template("chatml")
    special = ["<|endoftext|>", *template.special_tokens]
    tokenizer = train_byte_bpe(texts, vocab_size=vocab_size, special_tokens=special)
    tokenizer.chat_template = template.source
    return tokenizer


def certify(folder: Path, forms: list[str]) -> tuple[float, dict[str, Any]]:
    """Seconds of the command, and its certificate."""
    shutil.rmtree(folder / "certificate", ignore_errors=True)
    command = [sys.executable, "-m", "leveret", "certify", *forms, "text=text.txt", "transformers=off"]
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, "output=certificate"],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - begun
    file = folder / "certificate/certificate.json"
    if not file.is_file():
        raise SystemExit(done.stdout + done.stderr)
    return seconds, json.loads(file.read_text(encoding="utf-8"))


def judged(forms: dict[str, str], certificate: dict[str, Any]) -> dict[str, str | None]:
    """For each form None, or what is wrong with its verdict."""
    kinds = {"directory": "exact", "transformers": "exact", "int4": "int4", "nf4": "int4", "llama.cpp": "exact"}
    checks: dict[str, str | None] = {}
    for name, comparison in zip(list(forms)[1:], certificate["comparisons"], strict=True):
        missing = {"sampling"} if name == "llama.cpp" else set()  # a GGUF file has no generation_config.json
        wrong = [check["name"] for check in comparison["checks"] if check["verdict"] in ("different", "not compared")]
        wrong = [check for check in wrong if check not in missing]
        if comparison["kind"] != kinds[name]:
            wrong.append(f"judged as {comparison['kind']}")
        checks[f"{name} is the model"] = ", ".join(wrong) or None
    return checks


def spoil(directory: Path) -> None:
    """Change one weight."""
    from safetensors.torch import load_file, save_file

    file = directory / "model.safetensors"
    tensors = load_file(file)
    module, row, column = WRONG
    tensors[f"model.{module}.weight"][row, column] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def report(
    console: Console,
    forms: list[str],
    timed: list[tuple[float, dict[str, Any]]],
    checks: dict[str, str | None],
    file: Path | None,
) -> int:
    """Print, write `file`, and return the exit code: 1 when a check failed."""
    seconds = [taken for taken, _ in timed]
    each = {
        name: statistics.median(certificate["comparisons"][at]["seconds"] for _, certificate in timed)
        for at, name in enumerate(forms[1:])
    }
    rows = [(name, f"{median:.1f}") for name, median in each.items()]
    rows += [("all, with imports", f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})")]
    console.table(f"certify against {forms[0]}: median seconds", ("form", "seconds"), rows)
    for check, wrong in checks.items():
        console.info(f"{check}: {wrong or 'yes'}")
    if file is not None:
        data = {
            "machine": machine(["transformers", "llama-cpp-python"]),
            "seconds": seconds,
            "seconds_by_form": each,
            "checks": {check: wrong or "yes" for check, wrong in checks.items()},
        }
        file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if any(checks.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
