"""Pretraining on a CPU at two sizes, against transformers as people run it and as fast as it goes.

    python benchmarks/pretrain_cpu.py [--shapes T S] [--rounds N] [--peers eager compiled eager_fp32 compiled_fp32]
                                      [--peer-preload LIBRARY] [--json FILE] [--quick]

    T    hidden 384, 8 layers, 6/2 heads, feed-forward 1024, vocabulary 8,192; 8 rows of 512 tokens
    S    hidden 768, 12 layers, 12/4 heads, feed-forward 2048, vocabulary 32,000; 4 rows of 1,024 tokens

A step is what train_cpu.py times: ours as `leveret pretrain` calls it, the peer's as its Trainer does (fp32 weights,
bf16 autocast, fused AdamW, clipping), eager or through torch.compile, whose compilation is not on the clock. Where a
processor has no products of bf16, the peer is faster without autocast: `eager_fp32`, `compiled_fp32`.
`--peer-preload /usr/lib/.../libtcmalloc.so.4` gives the peer, and only it, the allocator it is fastest with. One
GEMM of T's largest product is timed too: the last line is the share of its rate that our steps reach.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_shape import QUICK, Shape, write_model
from side_by_side import Side, Timing, alternate, report
from train_cpu import LOSS_TOLERANCE, Plan, make_ours, make_theirs

SHAPES = {
    "T": (Shape(hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
                num_key_value_heads=2, vocab_size=8192), 8, 512),
    "S": (Shape(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
                num_key_value_heads=4, vocab_size=32000), 4, 1024),
}  # fmt: skip
"""Name -> model, rows and tokens of a row."""

PEERS = ["eager", "compiled", "eager_fp32", "compiled_fp32"]


def flops_per_token(shape: Shape, length: int) -> int:
    """Multiplications and additions of forward and backward, three times those of forward; half of the scores."""
    width = shape.hidden_size // shape.num_attention_heads
    heads = shape.num_attention_heads + 2 * shape.num_key_value_heads
    layer = shape.hidden_size * (heads * width + shape.hidden_size + 3 * shape.intermediate_size)
    weights = shape.num_hidden_layers * layer + shape.vocab_size * shape.hidden_size
    scores = shape.num_hidden_layers * shape.hidden_size * length  # causal: half of 2 * length
    return 6 * (weights + scores)


def gemm_rate() -> float:
    """FLOP a second of PyTorch's product of T's feed-forward block in bf16 or fp32, the fastest of several."""
    import torch

    seconds = []
    for dtype in (torch.bfloat16, torch.float32):
        left, right = torch.randn(4096, 384, dtype=dtype), torch.randn(384, 1024, dtype=dtype)
        out = left @ right
        for _ in range(20):
            began = time.perf_counter()
            torch.mm(left, right, out=out)
            seconds.append(time.perf_counter() - began)
    return 2 * left.numel() * right.shape[1] / min(seconds)


@contextmanager
def preloaded(library: str | None) -> Iterator[None]:
    """Processes started within the block load `library` first."""
    before = os.environ.get("LD_PRELOAD")
    if library:
        os.environ["LD_PRELOAD"] = library
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = before


def timed(name: str, plan: Plan, *, preload: str | None, rounds: int) -> tuple[Timing, str | None, list[Side]]:
    """Alternate our step and the peer's; what differs in the first loss, or None; the sides, closed."""
    ours = Side("leveret", make_ours, plan)
    with preloaded(preload):
        theirs = Side("transformers", make_theirs, plan)
    losses: list[tuple[float, float]] = []

    def first_losses_agree(mine: float, other: float) -> str | None:
        losses.append((mine, other))
        near = len(losses) > 1 or abs(mine - other) <= LOSS_TOLERANCE
        return None if near else f"no: {mine:.4f} and {other:.4f}"

    sides = [ours, theirs]
    amount = plan.rows * plan.sequence_length
    timing, difference = alternate(sides, "step", amount=amount, unit="token", rounds=rounds, same=first_losses_agree)
    for side in sides:
        side.close()
    return Timing(work=name, amount=amount, unit="token", seconds=timing.seconds), difference, sides


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS[:2])
    parser.add_argument("--peer-preload", metavar="LIBRARY", help="preload this into the peer's process")
    parser.add_argument("--rounds", type=int, default=7, help="steps that are timed; default 7")
    parser.add_argument("--quick", action="store_true", help="a toy model and one round: does the script still work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args()
    cases = {"toy": (QUICK, 2, 32)} if options.quick else {name: SHAPES[name] for name in options.shapes}
    timings, checks, sides = [], {}, []
    for name, (shape, rows, length) in cases.items():
        for peer in ["eager"] if options.quick else options.peers:
            work = f"{name}, peer {peer}"
            with tempfile.TemporaryDirectory() as folder:
                write_model(shape, Path(folder))
                plan = Plan(
                    model=Path(folder), vocab_size=shape.vocab_size, rows=rows, sequence_length=length,
                    compiled=peer.startswith("compiled"), autocast=not peer.endswith("fp32"),
                )  # fmt: skip
                timing, checks[f"{work}: first loss within {LOSS_TOLERANCE}"], sides = timed(
                    work, plan, preload=options.peer_preload, rounds=1 if options.quick else options.rounds
                )
            timings.append(timing)
    code = report(
        "pretraining step, bf16",
        timings,
        sides,
        checks,
        settings={
            name: {**vars(shape), "rows": rows, "tokens": tokens} for name, (shape, rows, tokens) in cases.items()
        }
        | {"peer_preload": options.peer_preload},
        packages=["leveret", "torch", "transformers"],
        file=options.json,
    )
    peak = gemm_rate()
    for timing in timings:
        shape, _, length = cases[timing.work.partition(",")[0]]
        rate = flops_per_token(shape, length) * timing.amount / statistics.median(timing.seconds["leveret"])
        print(f"{timing.work}: {rate / 1e9:,.0f} GFLOP/s, {rate / peak:.0%} of a GEMM's {peak / 1e9:,.0f}")
    return code


if __name__ == "__main__":
    sys.exit(main())
