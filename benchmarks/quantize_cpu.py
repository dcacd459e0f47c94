"""GPTQ on a CPU, against GPTQModel: the same small trained model and calibration text, perplexity and time.

    python benchmarks/quantize_cpu.py --peer-python PYTHON [--model DIR --text FILE] [--steps N] [--rounds N]
                                      [--bits 4] [--group-size 128] [--desc-act] [--json FILE] [--quick]

PYTHON is an interpreter with GPTQModel, which asks for newer packages than others of this project's peers do, so it has
an environment of its own. Without `--model` a small model is trained first, for `--steps` steps, on the sources of the
standard library (never on the part that is calibrated or judged on).

Each side quantizes from directory to directory in a process of its own, by turns; its imports are not timed, reading,
quantizing and writing are. One round is not counted: the peer compiles its packing when it first runs. Ours is `leveret
quantize method=gptq`; the peer's is load, quantize and save with its defaults (which reorder columns within groups).
Both get the same texts of at most 512 tokens. Perplexity is measured by one program for both, `leveret.load` in
float32, on text that neither saw: so it also shows that we read what the peer writes. Ours must not be worse than the
peer's by more than `TOLERANCE`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peak_memory import peak_bytes

TOLERANCE = 1.002
"""The largest ratio of our perplexity to the peer's that counts as no worse: what another seed would change."""

TEXT_TOKENS = 512
SHAPE = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    model: Path
    calibration: Path
    tokens: int
    bits: int
    group_size: int
    desc_act: bool


@dataclass(kw_only=True)
class Ran:
    """A side and what its processes answered."""

    name: str
    python: Path
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def peak_bytes(self) -> int:
        """The most memory of its processes."""
        return max(int(answer["peak_bytes"]) for answer in self.answers)


def write_start(folder: Path, options: argparse.Namespace) -> Path:
    """The model, calibration.jsonl and held_out.jsonl; returns the model's directory."""
    from leveret.data.standard_library import standard_library_documents
    from leveret.tokenizer.files import Tokenizer

    if options.model is not None:
        texts = [json.loads(line)["text"] for line in options.text.read_text(encoding="utf-8").splitlines()]
        _write_texts(folder, texts, Tokenizer.load(options.model), options.tokens)
        return Path(options.model)
    documents = [document.text for document in standard_library_documents()]
    aside = documents[::7]
    model = _train(folder / "model", [text for number, text in enumerate(documents) if number % 7], options.steps)
    _write_texts(folder, aside, Tokenizer.load(model), options.tokens)
    return model


def _write_texts(folder: Path, texts: list[str], tokenizer: Any, tokens: int) -> None:
    """Pieces of at most TEXT_TOKENS: as many as are calibrated on, and half as many to judge by."""
    pieces: list[str] = []
    for text in texts:
        ids = tokenizer.encode(text)
        pieces += [tokenizer.decode(ids[start : start + TEXT_TOKENS]) for start in range(0, len(ids), TEXT_TOKENS)]
        if len(pieces) * TEXT_TOKENS > 3 * tokens:
            break
    judged = pieces[::3]
    calibrated = [piece for number, piece in enumerate(pieces) if number % 3]
    for name, chosen in (("calibration", calibrated), ("held_out", judged)):
        lines = (json.dumps({"text": piece}) + "\n" for piece in chosen)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _train(folder: Path, texts: list[str], steps: int) -> Path:
    """A model that has learnt something, for rounding an untrained one shows nothing."""
    import torch
    import torch.nn.functional as F

    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights
    from leveret.tokenizer.train import train_byte_bpe
    from leveret.weights.save import save_model

    tokenizer = train_byte_bpe(texts[::4], vocab_size=SHAPE["vocab_size"] - 8, special_tokens=["<s>", "</s>"])
    ids = torch.tensor([token for text in texts for token in tokenizer.encode(text)][:4_000_000])
    model = Decoder(ModelConfig(family="llama", **SHAPE))
    init_weights(model, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        starts = torch.randint(len(ids) - 257, (8,), generator=generator)
        rows = torch.stack([ids[start : start + 257] for start in starts.tolist()])
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * max(0.05, 1 - step / steps)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model.to(torch.bfloat16).eval(), folder)
    tokenizer.save(folder)
    return folder


def ours(plan: Plan, output: Path) -> float:
    """Seconds of `leveret quantize`."""
    from leveret.console import Console
    from leveret.quantize.config import QuantizeConfig
    from leveret.quantize.run import run

    config = QuantizeConfig(
        model=str(plan.model), output=output, method="gptq", bits=plan.bits, group_size=plan.group_size,
        desc_act=plan.desc_act, calibration=[plan.calibration], calibration_tokens=plan.tokens,
        text=[plan.calibration], text_tokens=64,
    )  # fmt: skip
    began = time.perf_counter()
    run(config, Console(quiet=True))
    return time.perf_counter() - began


def theirs(plan: Plan, output: Path) -> float:
    """Seconds of GPTQModel's load, quantize and save."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 1)))  # fails with one
    from gptqmodel import GPTQModel, QuantizeConfig
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(plan.model)
    rows, left = [], plan.tokens
    for line in plan.calibration.read_text(encoding="utf-8").splitlines():
        ids = tokenizer(json.loads(line)["text"])["input_ids"][:left]
        if len(ids) > 1:
            rows.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
        left -= len(ids)
        if left <= 0:
            break
    began = time.perf_counter()
    settings = QuantizeConfig(
        bits=plan.bits, group_size=plan.group_size, **({"desc_act": True} if plan.desc_act else {})
    )
    model = GPTQModel.load(str(plan.model), settings, device="cpu")
    model.quantize(rows, batch_size=4)
    model.save(str(output))
    return time.perf_counter() - began


def perplexity_of(model: Path, held_out: Path) -> float:
    """By our reader in float32, without the rounding of activations that fast kernels do."""
    import torch

    from leveret.engine.perplexity import perplexity, windows_from_files
    from leveret.tokenizer.files import Tokenizer
    from leveret.weights.load import load_model

    tokenizer = Tokenizer.load(model)
    windows = windows_from_files([held_out], tokenizer, context_tokens=TEXT_TOKENS, most_tokens=40_000)
    return perplexity(load_model(model, dtype=torch.float32), windows)


def run_side(side: str, python: Path, plan: Plan, folder: Path) -> dict[str, Any]:
    """Quantize in a process of the side's own; its seconds, most memory and version."""
    answer = folder / f"{side}.json"
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(plan).items()}
    command = [str(python), __file__, "--side", side, "--plan", json.dumps(arguments), "--output", str(folder / side)]
    done = subprocess.run([*command, "--json", str(answer)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    content: dict[str, Any] = json.loads(answer.read_text())
    return content


def one_side(options: argparse.Namespace) -> int:
    """What `run_side` starts."""
    values = json.loads(options.plan)
    plan = Plan(**values | {"model": Path(values["model"]), "calibration": Path(values["calibration"])})
    seconds = {"leveret": ours, "gptqmodel": theirs}[options.side](plan, options.output)
    answer = {"seconds": seconds, "peak_bytes": peak_bytes(), "version": version(options.side)}
    options.json.write_text(json.dumps(answer))
    return 0


def compare(options: argparse.Namespace, folder: Path) -> int:
    """Both sides by turns, then both perplexities; the exit code."""
    from side_by_side import Timing, report

    model = write_start(folder, options)
    plan = Plan(
        model=model, calibration=folder / "calibration.jsonl", tokens=options.tokens, bits=options.bits,
        group_size=options.group_size, desc_act=options.desc_act,
    )  # fmt: skip
    pythons = {"leveret": Path(sys.executable), "gptqmodel": options.peer_python}
    sides = [Ran(name=name, python=python) for name, python in pythons.items()]
    for number in range(-1, options.rounds):
        for side in sides if number % 2 else reversed(sides):
            answer = run_side(side.name, side.python, plan, folder)
            if number >= 0:
                side.answers.append(answer)
    held_out = folder / "held_out.jsonl"
    figures = {side.name: perplexity_of(folder / side.name, held_out) for side in sides}
    figures["whole"] = perplexity_of(model, held_out)
    print("perplexity: " + ", ".join(f"{name} {figure:.4f}" for name, figure in figures.items()))
    ratio = figures["leveret"] / figures["gptqmodel"]
    worse = None if ratio <= TOLERANCE else f"no, {ratio:.4f} times theirs"
    timing = Timing(
        work="quantize", amount=plan.tokens, unit="token",
        seconds={side.name: [answer["seconds"] for answer in side.answers] for side in sides},
    )  # fmt: skip
    settings = {name: str(value) for name, value in vars(plan).items()}
    settings |= {f"perplexity {name}": figure for name, figure in figures.items()}
    settings |= {f"version {side.name}": side.answers[0]["version"] for side in sides}
    together = options.peer_python == Path(sys.executable)
    return report(
        "GPTQ, from directory to directory", [timing], sides, {"our perplexity is no worse": worse},
        settings=settings, packages=["torch", *(["gptqmodel"] if together else [])], file=options.json,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--peer-python", type=Path, default=Path(sys.executable), help="an interpreter with GPTQModel; default: this"
    )
    parser.add_argument("--model", type=Path, help="a trained model directory")
    parser.add_argument("--text", type=Path, help="JSON Lines with a `text`, for --model")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=65536, help="calibration tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--desc-act", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a few steps and tokens: does the script still work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    for hidden in ("--side", "--plan"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return one_side(options)
    if options.quick:
        options.steps, options.tokens, options.rounds = 4, 2048, 1
    with tempfile.TemporaryDirectory() as folder:
        return compare(options, Path(folder))


if __name__ == "__main__":
    raise SystemExit(main())
