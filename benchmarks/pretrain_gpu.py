"""HARE-1.1B on one GPU: tokens a second and MFU in bf16 and in FP8, and what the advisor expected.

    python benchmarks/pretrain_gpu.py [--rows N] [--steps N] [--sides NAME ...] [--json FILE] [--quick]

    hidden 2048, 22 layers, 32/8 heads, feed-forward 5632, vocabulary 32,000; rows of 2,048 tokens

A step is `optimizer_step` as `leveret pretrain` makes it (bf16 weights, fp32 masters, AdamW, clipping, chunked loss)
on random tokens, one micro-batch, no recomputation. MFU is model FLOP (no recomputation, causal attention) over the
peak in *bf16*, for FP8 too, so that the rows compare; the peak is that of leveret/plan/devices.yaml. The first steps
are not on the clock. `--quick` runs a toy on whatever there is, FP8 emulated: it shows that the script works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HARE = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 2048,
}  # fmt: skip
TOY = {**HARE, "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
       "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
SIDES: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp8 delayed": {"fp8": {}},
    "fp8 current": {"fp8": {"recipe": "current"}},
    "fp8 where advised": {"fp8": {"keep_bf16": ["*.k_proj", "*.v_proj"]}},
}
WARM_UP = 3


def measure(shape: dict[str, int], changes: dict[str, Any], *, rows: int, length: int, steps: int) -> dict[str, Any]:
    """Seconds of each step, the losses, the peak of memory."""
    import torch

    from leveret.console import Console
    from leveret.data.packing import Row
    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights
    from leveret.trainer.batches import batch_of
    from leveret.trainer.config import TrainingConfig
    from leveret.trainer.fp8 import in_fp8, with_scales
    from leveret.trainer.objective import CausalLoss
    from leveret.trainer.optimizer import build_optimizer
    from leveret.trainer.step import optimizer_step
    from leveret.trainer.world import World, device_of

    config = TrainingConfig(rows_per_step=rows, micro_batch_rows=rows, sequence_length=length, **changes)
    world = World(device_of("auto", None))
    model = Decoder(ModelConfig(family="mistral", **shape)).train()
    init_weights(model, 0)
    model.to(world.device)

    def row(step: int, place: int) -> Row:
        ids = np.random.default_rng([step, place]).integers(shape["vocab_size"], size=length + 1).astype(np.int32)
        places = np.arange(length, dtype=np.int32)
        return Row(input_ids=ids[:-1], targets=ids[1:], positions=places, document_ids=np.zeros_like(places))

    seconds, losses = [], []
    with in_fp8(model, config, world, Console()) as scaling:
        optimizer = build_optimizer(model, config, dtype=torch.bfloat16, seed=0, world=world)
        optimizer = with_scales(optimizer, scaling, world)
        objective = CausalLoss(model, config)
        for step in range(WARM_UP + steps):
            batch = batch_of([row(step, place) for place in range(rows)], [str(place) for place in range(rows)])
            _wait(world.device)
            began = time.perf_counter()
            result = optimizer_step(objective, [batch], optimizer, step=step, learning_rate=3e-4, world=world)
            _wait(world.device)
            seconds.append(time.perf_counter() - began)
            losses.append(result.loss)
        optimizer.close()
    peak = torch.cuda.max_memory_allocated() if world.device.type == "cuda" else None
    del model, optimizer, objective, scaling
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return {"seconds": seconds[WARM_UP:], "losses": losses, "peak_memory_bytes": peak}


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="of 2,048 tokens, in one micro-batch; default 8")
    parser.add_argument("--steps", type=int, default=10, help="that are timed; default 10")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="default all")
    parser.add_argument("--device", default="H200", help="whose peak the MFU is a share of; default H200")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--quick", action="store_true", help="a toy: does the script still work?")
    options = parser.parse_args()
    import torch

    from leveret.model.config import ModelConfig
    from leveret.model.count import flops_per_token
    from leveret.plan.devices import load_table
    from leveret.plan.fp8 import advise, time_ratio
    from leveret.trainer.config import TrainingConfig

    if not options.quick and not torch.cuda.is_available():
        print("there is no GPU here: --quick shows whether the script works", file=sys.stderr)
        return 1
    shape, rows, length, steps = (TOY, 2, 32, 1) if options.quick else (HARE, options.rows, 2048, options.steps)
    config = ModelConfig(family="mistral", **shape)
    device = load_table(None).devices[options.device]
    found = {side: measure(shape, SIDES[side], rows=rows, length=length, steps=steps) for side in options.sides}
    print(
        "| side | ms a step | tokens/s | MFU (of the bf16 peak) | GB at most | last loss |\n|---|---|---|---|---|---|"
    )
    for side, run in found.items():
        step = statistics.median(run["seconds"])
        run["tokens_per_second"] = rows * length / step
        run["mfu"] = run["tokens_per_second"] * flops_per_token(config, length, training=True) / device.peak("bf16")
        memory = "-" if run["peak_memory_bytes"] is None else f"{run['peak_memory_bytes'] / 1e9:.1f}"
        print(
            f"| {side} | {1e3 * step:.1f} | {run['tokens_per_second']:,.0f} | {run['mfu']:.1%} | {memory} "
            f"| {run['losses'][-1]:.4f} |"
        )
    training = TrainingConfig(rows_per_step=rows, micro_batch_rows=rows, sequence_length=length)
    expected = time_ratio(advise(config, training, options.device, device))
    print(f"\nexpected of the Linears inside the layers: FP8 takes {expected:.2f} of the time of bf16")
    if options.json is not None:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        figures = {"gpu": name, "shape": shape, "rows": rows, "sequence_length": length, "sides": found}
        options.json.write_text(json.dumps({**figures, "expected": expected}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
