"""Products of bfloat16 matrices on a CPU: `kernels/dense.py` and PyTorch, as a training step of a small model has them.

    python benchmarks/products_cpu.py [--peer-dtype float32] [--rounds N] [--repeats N] [--json FILE]
                                      [--quick]

The products of a step of 2,048 tokens, hidden 256, vocabulary 4,096: forward (x W^T), the gradient of the input (dy W),
that of the weight (dy^T x), and the head's three; and a square of 1,024. Ours takes whatever way it takes on this
processor, so where that has products of bfloat16 both sides are the same function. With `--peer-dtype float32` the peer
multiplies float32 copies that it has already, which is the most to hope for; results are compared within the rounding
of bfloat16. LEVERET_NATIVE=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
MKL_ENABLE_INSTRUCTIONS=AVX2 makes a processor with AVX-512 do what one with AVX2 would; there `--repeats 1` is enough.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import Side, Works, alternate, report

SHAPES = {
    "forward": (2048, 256, 256, False, True),
    "input's gradient": (2048, 256, 256, False, False),
    "weight's gradient": (256, 256, 2048, True, False),
    "head, forward": (1024, 4096, 256, False, True),
    "head, input's gradient": (1024, 256, 4096, False, False),
    "head, weight's gradient": (4096, 256, 1024, True, False),
    "square": (1024, 1024, 1024, False, True),
}
"""Rows, columns, the dimension summed over, and whether the left and the right matrix lie turned."""

QUICK = {"toy": (20, 30, 40, False, True)}


def factors(shape: tuple[int, int, int, bool, bool]) -> tuple[Any, Any]:
    """Two matrices (rows, depth) and (depth, columns) in bfloat16, the same in every process."""
    import torch

    rows, columns, depth, left_turned, right_turned = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(*((depth, rows) if left_turned else (rows, depth)), generator=generator).bfloat16()
    right = torch.randn(*((columns, depth) if right_turned else (depth, columns)), generator=generator).bfloat16()
    return left.t() if left_turned else left, right.t() if right_turned else right


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    shapes: dict[str, tuple[int, int, int, bool, bool]]
    repeats: int
    """Products of a round."""
    peer_dtype: str


def make_ours(plan: Plan) -> Works:
    from leveret.kernels.dense import matmul

    return {name: partial(repeated, plan.repeats, matmul, *factors(shape)) for name, shape in plan.shapes.items()}


def make_theirs(plan: Plan) -> Works:
    import torch

    dtype = getattr(torch, plan.peer_dtype)
    each = {name: [factor.to(dtype) for factor in factors(shape)] for name, shape in plan.shapes.items()}
    return {name: partial(repeated, plan.repeats, torch.mm, *pair) for name, pair in each.items()}


def repeated(times: int, multiply: Callable[[Any, Any], Any], left: Any, right: Any) -> list[float]:
    """The product, several times; some of its numbers, and its length."""
    for _ in range(times):
        product = multiply(left, right)
    seen = product[:: max(1, len(product) // 8), :: max(1, product.shape[1] // 8)]
    return [float(product.float().norm()), *seen.float().flatten().tolist()]


def are_near(mine: list[float], theirs: list[float]) -> str | None:
    """What differs by more than two roundings to bfloat16 of the largest number seen, or None."""
    bound = 2**-7 * max(map(abs, theirs[1:]))
    apart = max(abs(a - b) for a, b in zip(mine[1:], theirs[1:], strict=True))
    lengths = abs(mine[0] - theirs[0]) / theirs[0]
    return None if apart <= bound and lengths < 1e-3 else f"no: numbers {apart:.3g} apart, lengths {lengths:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--repeats", type=int, default=20, help="products of a round; default 20")
    parser.add_argument("--quick", action="store_true", help="a toy product and one round: does the script still work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args()
    shapes = QUICK if options.quick else SHAPES
    plan = Plan(shapes=shapes, repeats=options.repeats, peer_dtype=options.peer_dtype)
    sides = [Side("leveret", make_ours, plan), Side("torch", make_theirs, plan)]
    timings, checks = [], {}
    for name, (rows, columns, depth, *_) in shapes.items():
        timing, checks[f"{name}: the same product"] = alternate(
            sides, name, amount=max(1, round(2 * rows * columns * depth * plan.repeats / 1e6)), unit="MFLOP",
            rounds=1 if options.quick else options.rounds, same=are_near,
        )  # fmt: skip
        timings.append(timing)
    for side in sides:
        side.close()
    return report(
        f"products of matrices, the peer in {options.peer_dtype}", timings, sides, checks,
        settings=vars(plan),
        packages=["leveret", "torch"], file=options.json,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
