"""QLoRA on a CPU, against peft over bitsandbytes: one optimizer step over packed rows, with NF4 underneath.

    python benchmarks/qlora_cpu.py [--peers default bf16 compiled] [--rounds N] [--rows N] [--peer-preload LIBRARY]
                                   [--json FILE] [--quick]

S: hidden 768, 12 layers, 12/4 heads, feed-forward 2048, vocabulary 32,000; 4 rows of 1,024 tokens, nothing padded. The
base is NF4 with double quantization, made from the same bf16 weights; LoRA of rank 16 on every Linear but the head,
from the same file. Ours is `optimizer_step` as `leveret finetune` calls it with `adapter.base: nf4`. The peer's ways:

    default    what peft gives: adapter in fp32 beside a bf16 model, which is cast at every Linear
    bf16       `autocast_adapter_dtype=False`: the adapter in bf16 as well
    compiled   bf16 through torch.compile

`prepare_model_for_kbit_training` is left out: it recomputes activations and casts head and norms to fp32, so that the
peer would be slower. All have fused AdamW and clipping, and one step before the clock, which holds the compilation. The
loss of that step, made before any update, must agree within bf16 rounding; later ones are written down. Every pair has
processes of its own, so the peak memory of each is its own (that of loading included).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from model_shape import QUICK, Shape, write_model
from pretrain_cpu import SHAPES, preloaded
from side_by_side import Side, Timing, Works, alternate, report, until_the_end
from train_cpu import BETAS, LOSS_TOLERANCE

LEARNING_RATE = 2e-4
RANK, ALPHA = 16, 32
PEERS = {"default": (False, False), "bf16": (True, False), "compiled": (True, True)}
"""Name -> whether the adapter is in bf16, and whether the model is compiled."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    folder: Path
    """With model/ and adapter/."""
    vocab_size: int
    rows: int
    sequence_length: int
    peer: str

    def batch(self, step: int) -> np.ndarray:
        """The ids (rows, sequence_length) of `step`."""
        return np.random.default_rng([0, step]).integers(self.vocab_size, size=(self.rows, self.sequence_length))


def write_start(shape: Shape, folder: Path) -> None:
    """A bf16 model with random weights, and an adapter that changes nothing yet."""
    from leveret.model.lora import LoraSettings
    from leveret.model.lora_targets import add_lora
    from leveret.weights.adapter import save_adapter
    from leveret.weights.load import load_model
    from leveret.weights.save import save_model

    write_model(shape, folder / "whole")
    model = load_model(folder / "whole", dtype="bfloat16")
    save_model(model, folder / "model")
    add_lora(model, LoraSettings(rank=RANK, alpha=ALPHA), "all-linear", seed=0)
    save_adapter(model, folder / "adapter", base=str(folder / "model"))


def make_ours(plan: Plan) -> Works:
    import torch

    from leveret.allocator import keep_freed_memory
    from leveret.console import Console
    from leveret.data.packing import Row
    from leveret.model.lora import lora_modules
    from leveret.precision.swap import round_to_nf4
    from leveret.trainer.adamw import AdamW
    from leveret.trainer.batches import batch_of
    from leveret.trainer.config import TrainingConfig
    from leveret.trainer.objective import CausalLoss
    from leveret.trainer.step import optimizer_step
    from leveret.weights.adapter_load import load_adapter
    from leveret.weights.load import load_model

    config = TrainingConfig(max_steps=1, learning_rate=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    model = load_model(plan.folder / "model")
    round_to_nf4(model)
    load_adapter(model, plan.folder / "adapter", rounded=False)
    for module in lora_modules(model).values():
        module.lora_A.requires_grad_()
        module.lora_B.requires_grad_()
    optimizer = AdamW(model.train(), config, dtype=torch.bfloat16)
    objective = CausalLoss(model, config)
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
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    in_bf16, compiled = PEERS[plan.peer]
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(
        plan.folder / "model", quantization_config=settings, dtype=torch.bfloat16
    )
    model = PeftModel.from_pretrained(
        base, plan.folder / "adapter", is_trainable=True, autocast_adapter_dtype=not in_bf16
    ).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if in_bf16:
        for parameter in trained:
            parameter.data = parameter.data.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    forward = torch.compile(model) if compiled else model
    steps = count()

    def work() -> float:
        ids = torch.from_numpy(plan.batch(next(steps)))
        optimizer.zero_grad(set_to_none=True)
        loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return float(loss.item())

    return {"step": work}


def timed(plan: Plan, losses: list[tuple[float, float]], *, preload: str | None, rounds: int) -> tuple[
    Timing, str | None, list[Side]
]:  # fmt: skip
    """Alternate our step and the peer's; what differs in the first loss, or None; the sides, closed."""
    ours = Side("leveret", make_ours, plan)
    with preloaded(preload):
        theirs = Side("transformers", make_theirs, plan)

    def first_losses_agree(mine: float, other: float) -> str | None:
        losses.append((mine, other))
        near = len(losses) > 1 or abs(mine - other) <= LOSS_TOLERANCE
        return None if near else f"no: {mine:.4f} and {other:.4f}"

    sides, amount = [ours, theirs], plan.rows * plan.sequence_length
    timing, difference = alternate(sides, "step", amount=amount, unit="token", rounds=rounds, same=first_losses_agree)
    for side in sides:
        side.close()
    named = Timing(work=f"QLoRA, peer {plan.peer}", amount=amount, unit="token", seconds=timing.seconds)
    return named, difference, sides


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peer-preload", metavar="LIBRARY", help="preload this into the peer's process")
    parser.add_argument("--rows", type=int, default=SHAPES["S"][1], help="of a step; default 4")
    parser.add_argument("--rounds", type=int, default=7, help="steps that are timed; default 7")
    parser.add_argument("--quick", "--smoke", action="store_true", help="a toy model and one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args()
    quick = Shape(**(vars(QUICK) | {"hidden_size": 64}))  # bitsandbytes wants rows of whole blocks
    shape, rows, length = (quick, 2, 32) if options.quick else (SHAPES["S"][0], options.rows, SHAPES["S"][2])
    timings, checks, peaks, sides = [], {}, {}, []
    losses: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_start(shape, Path(folder))
        for peer in ["default"] if options.quick else options.peers:
            plan = Plan(folder=Path(folder), vocab_size=shape.vocab_size, rows=rows, sequence_length=length, peer=peer)
            timing, checks[f"{peer}: first loss within {LOSS_TOLERANCE}"], sides = timed(
                plan, losses.setdefault(peer, []),
                preload=options.peer_preload, rounds=1 if options.quick else options.rounds,
            )  # fmt: skip
            timings.append(timing)
            peaks[peer] = {side.name: side.peak_bytes for side in sides}
    for peer, bytes_of in peaks.items():
        held = ", ".join(f"{name} {peak / 2**20:,.0f} MiB" for name, peak in bytes_of.items())
        print(f"peak memory, {peer}: {held}")
    return report(
        "QLoRA step, bf16",
        timings,
        sides,
        checks,
        settings={
            **vars(shape), "rank": RANK, "rows": rows, "tokens": length, "peer_preload": options.peer_preload,
            "peak_memory_bytes": peaks, "losses": losses,
        },
        packages=["leveret", "torch", "transformers", "peft", "bitsandbytes"],
        file=options.json,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
