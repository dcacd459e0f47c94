"""Training on a CPU: one optimizer step of leveret, and of transformers' Mistral as people write such a loop.

    python benchmarks/train_cpu.py [--json FILE] [--quick]

Ours is `optimizer_step` as `leveret pretrain` calls it (bf16 weights, fp32 masters, chunked loss). The peer is
`MistralForCausalLM` in fp32 under bf16 autocast with torch's fused AdamW and gradient clipping, eager. Both begin with
the same weights and see the same random rows in the same order; the loss of the first step, made before any update,
must agree within bf16 rounding. Later losses are written down but not compared: two bf16 runs drift apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from model_shape import Shape, add_shape_options, shape_from, write_model
from side_by_side import Side, Works, alternate, report, until_the_end

LEARNING_RATE = 1e-3
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
LOSS_TOLERANCE = 0.01  # nats of about 9; the two round activations to bf16 in different places


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    model: Path
    vocab_size: int
    rows: int
    sequence_length: int
    compiled: bool = False
    """The peer goes through torch.compile."""
    autocast: bool = True
    """The peer multiplies in bf16; else in fp32, which is faster where a processor has no bf16."""
    loaded_with: Mapping[str, Any] = field(default_factory=dict)
    """What the peer's from_pretrained is told besides."""

    def batch(self, step: int) -> np.ndarray:
        """The ids (rows, sequence_length) of `step`."""
        return np.random.default_rng([0, step]).integers(self.vocab_size, size=(self.rows, self.sequence_length))


def make_ours(plan: Plan) -> Works:
    import torch

    from leveret.allocator import keep_freed_memory
    from leveret.console import Console
    from leveret.data.packing import Row
    from leveret.trainer.adamw import AdamW
    from leveret.trainer.batches import batch_of
    from leveret.trainer.config import TrainingConfig
    from leveret.trainer.objective import CausalLoss
    from leveret.trainer.step import optimizer_step
    from leveret.weights.load import load_model

    config = TrainingConfig(max_steps=1, learning_rate=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    model = load_model(plan.model, dtype="float32").train()
    optimizer = AdamW(model, config, dtype=torch.bfloat16)
    objective = CausalLoss(model)
    until_the_end(keep_freed_memory(Console(quiet=True)))  # as in a run
    steps = count()

    def row(ids: np.ndarray) -> Row:
        places = np.arange(ids.size)
        targets = np.append(ids[1:], -100)
        return Row(input_ids=ids, targets=targets, positions=places, document_ids=np.zeros_like(places))

    def work() -> float:
        step = next(steps)
        batch = batch_of([row(ids) for ids in plan.batch(step)], [str(place) for place in range(plan.rows)])
        return optimizer_step(objective, [batch], optimizer, step=step, learning_rate=LEARNING_RATE).loss

    return {"step": work}


def make_theirs(plan: Plan) -> Works:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(plan.model, dtype=torch.float32, **plan.loaded_with).train()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    forward = torch.compile(model) if plan.compiled else model
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
    steps = count()

    def work() -> float:
        ids = torch.from_numpy(plan.batch(next(steps)))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=plan.autocast):
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return {"step": work}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser)
    parser.add_argument("--rows", type=int, default=8, help="of a step; default 8")
    parser.add_argument("--sequence-length", type=int, default=256, help="default 256")
    parser.add_argument("--rounds", type=int, default=15, help="steps that are timed; default 15")
    options = parser.parse_args()
    shape: Shape = shape_from(options)
    rows, length = (2, 32) if options.quick else (options.rows, options.sequence_length)
    losses: list[tuple[float, float]] = []

    def first_losses_agree(ours: float, theirs: float) -> str | None:
        losses.append((ours, theirs))
        if len(losses) > 1 or abs(ours - theirs) <= LOSS_TOLERANCE:
            return None
        return f"no: {ours:.4f} and {theirs:.4f}"

    with tempfile.TemporaryDirectory() as folder:
        write_model(shape, Path(folder))
        plan = Plan(model=Path(folder), vocab_size=shape.vocab_size, rows=rows, sequence_length=length)
        sides = [Side("leveret", make_ours, plan), Side("transformers", make_theirs, plan)]
        timing, difference = alternate(
            sides,
            "step",
            amount=rows * length,
            unit="token",
            rounds=1 if options.quick else options.rounds,
            same=first_losses_agree,
        )
        for side in sides:
            side.close()
    return report(
        "training step, bf16",
        [timing],
        sides,
        {f"first loss within {LOSS_TOLERANCE}": difference},
        settings={**vars(shape), "rows": rows, "sequence_length": length, "losses": losses},
        packages=["leveret", "torch", "transformers"],
        file=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
