"""What FP8 costs in loss: the same small model trained in bf16, with delayed and with current scaling; also fp32.

    python benchmarks/fp8_loss.py [--steps N] [--seeds N] [--sides NAME ...] [--json FILE] [--quick]

The text is the source of Python's standard library, byte by byte (vocabulary 256), on every machine at hand; the last
tenth of its files is held out. For each seed all sides begin with the same weights and see the same rows in the same
order. The held-out loss is that of the bf16 model, which is what a run leaves. FP8 is emulated where there is no GPU:
the numbers are exact, the time says nothing. A difference counts when it is larger than what another seed does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model_shape import QUICK, Shape

SMALL = Shape(hidden_size=128, intermediate_size=384, num_hidden_layers=4, vocab_size=256)
SIDES: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {},
    "fp8 delayed, 1024 steps": {"fp8": {}},
    "fp8 delayed, 16 steps": {"fp8": {"history_steps": 16}},
    "fp8 delayed, most recent": {"fp8": {"of_history": "most_recent"}},
    "fp8 current": {"fp8": {"recipe": "current"}},
}
LAST_STEPS = 20


class Text:
    """Rows of bytes; row k is the same on every run. What a mixture is to the trainer."""

    def __init__(self, length: int, *, held_out: bool, seed: int = 0) -> None:
        folder = Path(sysconfig.get_path("stdlib"))
        files = sorted(path for path in folder.glob("*.py"))
        chosen = [path for place, path in enumerate(files) if (place % 10 == 9) == held_out]
        self.bytes = np.frombuffer(b"\n\n".join(path.read_bytes() for path in chosen), dtype=np.uint8)
        self.length, self.seed = length, seed

    def row(self, place: int) -> Any:
        from leveret.data.packing import Row

        start = np.random.default_rng([self.seed, place]).integers(len(self.bytes) - self.length - 1)
        piece = self.bytes[start : start + self.length + 1].astype(np.int32)
        places = np.arange(self.length, dtype=np.int32)
        return Row(input_ids=piece[:-1], targets=piece[1:], positions=places, document_ids=np.zeros_like(places))

    def key(self, place: int) -> str:
        return str(place)


def train(shape: Shape, changes: Mapping[str, Any], *, seed: int, steps: int, rows: int, length: int) -> dict[str, Any]:
    """Losses of each step, the loss on held-out rows, seconds."""
    import torch

    from leveret.console import Console
    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights
    from leveret.trainer.batches import BatchSource, batch_of
    from leveret.trainer.config import TrainingConfig
    from leveret.trainer.fp8 import in_fp8, with_scales
    from leveret.trainer.objective import CausalLoss, summed_loss
    from leveret.trainer.optimizer import build_optimizer
    from leveret.trainer.parallel import DTYPES
    from leveret.trainer.schedule import Schedule
    from leveret.trainer.step import optimizer_step
    from leveret.trainer.world import World, device_of

    config = TrainingConfig(
        max_steps=steps, rows_per_step=rows, micro_batch_rows=rows, sequence_length=length, learning_rate=2e-3,
        warmup_fraction=0.05, **changes,
    )  # fmt: skip
    model = Decoder(ModelConfig(family="mistral", **vars(shape))).train()
    init_weights(model, seed)
    world = World(device_of("auto", None))
    model.to(world.device)
    schedule = Schedule(config=config, total_steps=steps)
    source = BatchSource(Text(length, held_out=False, seed=seed), config, rows_in_one_epoch=steps * rows)
    losses, began = [], time.perf_counter()
    with in_fp8(model, config, world, Console(quiet=True)) as scaling:
        optimizer = build_optimizer(model, config, dtype=DTYPES[config.precision], seed=seed, world=world)
        optimizer = with_scales(optimizer, scaling, world)
        objective = CausalLoss(model, config)
        for step in range(steps):
            result = optimizer_step(
                objective, source.step(step), optimizer, step=step, learning_rate=schedule.at(step), world=world
            )
            losses.append(result.loss)
        optimizer.close()
    seconds = time.perf_counter() - began
    held_out = Text(length, held_out=True)
    batches = [batch_of([held_out.row(place) for place in range(at, at + 8)], ["row"] * 8) for at in range(0, 64, 8)]
    with torch.no_grad():
        total = sum(float(summed_loss(model.eval(), batch)) for batch in batches)
    return {"losses": losses, "held_out": total / (64 * length), "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="default 300")
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--rows", type=int, default=8, help="of a step; default 8")
    parser.add_argument("--sequence-length", type=int, default=128, help="default 128")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every loss here")
    parser.add_argument("--quick", action="store_true", help="a toy model and three steps: does the script still work?")
    options = parser.parse_args()
    shape = Shape(**{**vars(QUICK), "vocab_size": 256}) if options.quick else SMALL
    steps, seeds = (3, 1) if options.quick else (options.steps, options.seeds)
    found: dict[str, list[dict[str, Any]]] = {}
    for side in options.sides:
        for seed in range(seeds):
            run = train(shape, SIDES[side], seed=seed, steps=steps, rows=options.rows, length=options.sequence_length)
            found.setdefault(side, []).append(run)
            print(f"{side}, seed {seed}: held out {run['held_out']:.4f}, {run['seconds']:.0f} s", file=sys.stderr)
    print(table(found, steps))
    if options.json is not None:
        settings = {**vars(shape), "steps": steps, "rows": options.rows, "sequence_length": options.sequence_length}
        options.json.write_text(json.dumps({"settings": settings, "runs": found}, indent=1) + "\n", encoding="utf-8")
    return 0


def table(found: Mapping[str, list[dict[str, Any]]], steps: int) -> str:
    """Means over the seeds, and differences to bf16 seed by seed."""
    lines = [
        f"| {steps} steps | loss, last {LAST_STEPS} steps | held out | held out - bf16, each seed |",
        "|---|---|---|---|",
    ]
    plain = [run["held_out"] for run in found.get("bf16", [])]
    for side, runs in found.items():
        last = statistics.mean(statistics.mean(run["losses"][-LAST_STEPS:]) for run in runs)
        held_out = [run["held_out"] for run in runs]
        apart = ", ".join(f"{one - other:+.4f}" for one, other in zip(held_out, plain, strict=False))
        lines.append(f"| {side} | {last:.4f} | {statistics.mean(held_out):.4f} | {apart} |")
    if len(plain) > 1:
        lines.append(f"\nbf16 with other seeds: {max(plain) - min(plain):.4f} between the best and the worst")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
