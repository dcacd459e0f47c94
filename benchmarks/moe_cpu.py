"""Training a mixture of experts on a CPU, against transformers' Mixtral in every setting it has.

    python benchmarks/moe_cpu.py [--peers grouped_mm loop grouped_mm+compile loop+compile] [--rounds N]
                                 [--peer-preload LIBRARY] [--json FILE] [--quick]

Hidden 384, 8 layers, 6/2 heads, 8 experts of 512 of which a token visits 2, vocabulary 8,192; 8 rows of 512 tokens. A
step is what train_cpu.py times, the balance loss included on both sides: ours as `leveret pretrain` calls it, the
peer's as its Trainer does (fp32 weights, bf16 autocast, fused AdamW, clipping). The peer's ways through the experts:

    grouped_mm   its default: tokens sorted by expert, one call for all; autocast does not reach into it
    loop         its `eager`: one expert after the other

each as it is or through torch.compile, whose compilation is not on the clock. The loss of the first step, made before
any update, must agree within bf16 rounding. Every pair has processes of its own, so the peak memory of each is its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from model_shape import QUICK, Shape
from pretrain_cpu import timed
from side_by_side import report
from train_cpu import LOSS_TOLERANCE, Plan

SHAPE = Shape(
    hidden_size=384,
    intermediate_size=512,
    num_hidden_layers=8,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=8192,
)
EXPERTS, CHOICES = 8, 2
ROWS, LENGTH = 8, 512
PEERS = {
    "grouped_mm": ("grouped_mm", False),
    "loop": ("eager", False),
    "grouped_mm+compile": ("grouped_mm", True),
    "loop+compile": ("eager", True),
}
"""Name -> transformers' experts_implementation, and whether it is compiled."""


def write_mixture(shape: Shape, directory: Path) -> None:
    """A Mixtral with random weights."""
    from leveret.model.config import ModelConfig, MoeConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights
    from leveret.weights.save import save_model

    moe = MoeConfig(num_experts=EXPERTS, experts_per_token=CHOICES, router_aux_loss_coef=0.01)
    model = Decoder(ModelConfig(family="mixtral", initializer_range=0.05, moe=moe, **vars(shape)))
    init_weights(model, seed=0)
    save_model(model, directory)


def plan_for(peer: str, model: Path, shape: Shape, *, rows: int, length: int) -> Plan:
    implementation, compiled = PEERS[peer]
    loaded_with: dict[str, Any] = {"experts_implementation": implementation, "output_router_logits": True}
    return Plan(
        model=model, vocab_size=shape.vocab_size, rows=rows, sequence_length=length, compiled=compiled,
        loaded_with=loaded_with,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peer-preload", metavar="LIBRARY", help="preload this into the peer's process")
    parser.add_argument("--rounds", type=int, default=7, help="steps that are timed; default 7")
    parser.add_argument("--quick", "--smoke", action="store_true", help="a toy model and one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args()
    shape, rows, length = (QUICK, 2, 32) if options.quick else (SHAPE, ROWS, LENGTH)
    peers = ["grouped_mm", "loop"] if options.quick else options.peers
    timings, checks, sides, peaks = [], {}, [], {}
    for peer in peers:
        with tempfile.TemporaryDirectory() as folder:
            write_mixture(shape, Path(folder))
            plan = plan_for(peer, Path(folder), shape, rows=rows, length=length)
            timing, checks[f"{peer}: first loss within {LOSS_TOLERANCE}"], sides = timed(
                f"peer {peer}", plan, preload=options.peer_preload, rounds=1 if options.quick else options.rounds
            )
        timings.append(timing)
        peaks[peer] = {side.name: side.peak_bytes for side in sides}
    for peer, bytes_of in peaks.items():
        print(
            f"peak memory, {peer}: " + ", ".join(f"{name} {peak / 2**20:,.0f} MiB" for name, peak in bytes_of.items())
        )
    return report(
        "training step of a mixture, bf16",
        timings,
        sides,
        checks,
        settings={
            **vars(shape), "experts": EXPERTS, "experts_per_token": CHOICES, "rows": rows, "tokens": length,
            "peer_preload": options.peer_preload, "peak_memory_bytes": peaks,
        },
        packages=["leveret", "torch", "transformers"],
        file=options.json,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
