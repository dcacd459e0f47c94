"""LoRA on conversations of many lengths on a CPU, against trl and peft: one optimizer step over the same samples.

    python benchmarks/sft_cpu.py [--peers padded packed] [--peer-weights bfloat16 | float32] [--samples N]
                                 [--rounds N] [--peer-preload LIBRARY] [--json FILE] [--quick]

S: hidden 768, 12 layers, 12/4 heads, feed-forward 2048, vocabulary 32,000; a step is 32 samples whose lengths are
log-normal (median 200 tokens, up to 1,024), the second half of each trained. LoRA of rank 16 on every Linear but the
head, from the same file. Tokens are those of samples: padding takes time and counts nothing. Ours packs into rows of
1,024 and calls `optimizer_step` as `leveret finetune` does. The peer's ways, both with trl's own collator:

    padded    trl's default: micro-batches of 8 samples, each as long as its longest
    packed    trl's `packing=True`: best-fit rows of 1,024 without padding, documents kept apart by their positions

The peer's weights are bf16 and its adapter too, which is its fastest way, or fp32 under autocast, as trl loads a model
unless it is told otherwise. All have fused AdamW and clipping and divide by the trained tokens of the whole step, and
one step goes before the clock. The loss of that step must agree; later ones are written down. Packing, which a run does
once, is not on the clock; collating is. Every pair has processes of its own, so the peak memory of each is its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from model_shape import QUICK, Shape
from pretrain_cpu import SHAPES, preloaded
from qlora_cpu import LEARNING_RATE, RANK, write_start
from side_by_side import Side, Timing, Works, alternate, report, until_the_end
from train_cpu import BETAS, LOSS_TOLERANCE

PEERS = ("padded", "packed")
MEDIAN_TOKENS, SPREAD = 200, 0.8
PADDED_SAMPLES, OUR_ROWS = 8, 4
"""Of a micro-batch. A packed one of the peer is one row: its mask grows with the square of the tokens."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    folder: Path
    """With model/ and adapter/."""
    vocab_size: int
    samples: int
    sequence_length: int
    steps: int
    peer: str
    peer_weights: str

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample, in every step the same."""
        longest = self.sequence_length
        median = MEDIAN_TOKENS * longest / 1024
        drawn = np.random.default_rng(0).lognormal(np.log(median), SPREAD, size=self.samples)
        return [int(length) for length in np.clip(np.round(drawn), 4, longest)]

    def step(self, number: int) -> list[tuple[list[int], list[bool]]]:
        """Ids and mask of each sample of a step."""
        chance = np.random.default_rng([0, number])
        return [
            (chance.integers(self.vocab_size, size=length).tolist(), [place >= length // 2 for place in range(length)])
            for length in self.lengths
        ]


def make_ours(plan: Plan) -> Works:
    import torch

    from leveret.allocator import keep_freed_memory
    from leveret.console import Console
    from leveret.data.packing import Sample
    from leveret.data.sample_rows import SampleRows, pack_samples
    from leveret.model.lora import lora_modules
    from leveret.trainer.adamw import AdamW
    from leveret.trainer.batches import batch_of
    from leveret.trainer.config import TrainingConfig
    from leveret.trainer.objective import CausalLoss
    from leveret.trainer.step import optimizer_step
    from leveret.weights.adapter_load import load_adapter
    from leveret.weights.load import load_model

    config = TrainingConfig(max_steps=1, learning_rate=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    model = load_model(plan.folder / "model")
    load_adapter(model, plan.folder / "adapter", rounded=False)
    for module in lora_modules(model).values():
        module.lora_A.requires_grad_()
        module.lora_B.requires_grad_()
    optimizer = AdamW(model.train(), config, dtype=torch.bfloat16)
    objective = CausalLoss(model, config)
    until_the_end(keep_freed_memory(Console(quiet=True)))  # as in a run
    steps = count()

    def packed(number: int) -> SampleRows:
        samples = [Sample(ids=ids, mask=mask, key=str(i)) for i, (ids, mask) in enumerate(plan.step(number))]
        return pack_samples(samples, plan.sequence_length)

    rows_of_step = [packed(number) for number in range(plan.steps)]

    def work() -> float:
        step = next(steps)
        rows = rows_of_step[step]
        places = [range(len(rows))[start : start + OUR_ROWS] for start in range(0, len(rows), OUR_ROWS)]
        batches = [batch_of([rows.row(i) for i in part], [rows.key(i) for i in part]) for part in places]
        return optimizer_step(objective, batches, optimizer, step=step, learning_rate=LEARNING_RATE).loss

    return {"step": work}


def make_theirs(plan: Plan) -> Works:
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging
    from trl import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    logging.disable_progress_bar()
    disable_progress_bars()
    in_bf16, packed = plan.peer_weights == "bfloat16", plan.peer == "packed"
    base = AutoModelForCausalLM.from_pretrained(plan.folder / "model", dtype=getattr(torch, plan.peer_weights))
    model = PeftModel.from_pretrained(
        base, plan.folder / "adapter", is_trainable=True, autocast_adapter_dtype=not in_bf16
    ).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if in_bf16:
        for parameter in trained:
            parameter.data = parameter.data.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=packed)
    steps, size = count(), 1 if packed else PADDED_SAMPLES

    def rows_of(number: int) -> list[dict[str, Any]]:
        samples = plan.step(number)
        data = Dataset.from_dict(
            {"input_ids": [ids for ids, _ in samples],
             "labels": [np.where(mask, ids, -100).tolist() for ids, mask in samples]}
        )  # fmt: skip
        return list(pack_dataset(data, plan.sequence_length, "bfd") if packed else data)

    rows_of_step = [rows_of(number) for number in range(plan.steps)]

    def work() -> float:
        rows = rows_of_step[next(steps)]
        batches = [collate(rows[start : start + size]) for start in range(0, len(rows), size)]
        targets = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            with nullcontext() if in_bf16 else torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch, use_cache=False, num_items_in_batch=targets).loss
            loss.backward()
            total += float(loss.item())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return total

    return {"step": work}


def timed(plan: Plan, losses: list[tuple[float, float]], *, preload: str | None, rounds: int) -> tuple[
    Timing, str | None, list[Side]
]:  # fmt: skip
    """Alternate our step and the peer's; what differs in the first loss, or None; the sides, closed."""
    ours = Side("leveret", make_ours, plan)
    with preloaded(preload):
        theirs = Side("trl", make_theirs, plan)

    def first_losses_agree(mine: float, other: float) -> str | None:
        losses.append((mine, other))
        near = len(losses) > 1 or abs(mine - other) <= LOSS_TOLERANCE
        return None if near else f"no: {mine:.4f} and {other:.4f}"

    sides, amount = [ours, theirs], sum(plan.lengths)
    timing, difference = alternate(sides, "step", amount=amount, unit="token", rounds=rounds, same=first_losses_agree)
    for side in sides:
        side.close()
    named = Timing(work=f"LoRA SFT, peer {plan.peer}", amount=amount, unit="token", seconds=timing.seconds)
    return named, difference, sides


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peer-weights", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--peer-preload", metavar="LIBRARY", help="preload this into the peer's process")
    parser.add_argument("--samples", type=int, default=32, help="of a step; default 32")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are timed; default 5")
    parser.add_argument("--quick", "--smoke", action="store_true", help="a toy model and one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args()
    quick, (whole, _, whole_length) = options.quick, SHAPES["S"]
    shape: Shape = QUICK if quick else whole
    length, samples, rounds = (64, 6, 1) if quick else (whole_length, options.samples, options.rounds)
    timings, checks, peaks, sides = [], {}, {}, []
    losses: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_start(shape, Path(folder))
        for peer in options.peers:
            plan = Plan(
                folder=Path(folder), vocab_size=shape.vocab_size, samples=samples, sequence_length=length,
                steps=rounds + 1, peer=peer, peer_weights=options.peer_weights,
            )  # fmt: skip
            timing, checks[f"{peer}: first loss within {LOSS_TOLERANCE}"], sides = timed(
                plan, losses.setdefault(peer, []), preload=options.peer_preload, rounds=rounds
            )
            timings.append(timing)
            peaks[peer] = {side.name: side.peak_bytes for side in sides}
    for peer, bytes_of in peaks.items():
        held = ", ".join(f"{name} {peak / 2**20:,.0f} MiB" for name, peak in bytes_of.items())
        print(f"peak memory, {peer}: {held}")
    return report(
        f"LoRA SFT step, peer in {options.peer_weights}",
        timings,
        sides,
        checks,
        settings={
            **vars(shape), "rank": RANK, "samples": samples, "tokens": length, "lengths": plan.lengths,
            "peer_preload": options.peer_preload, "peak_memory_bytes": peaks, "losses": losses,
        },
        packages=["leveret", "torch", "transformers", "peft", "trl"],
        file=options.json,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
