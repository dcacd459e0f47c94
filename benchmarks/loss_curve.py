"""Does bf16 training learn what fp32 learns? The losses of leveret in bf16 and of transformers in fp32, step by step.

    python benchmarks/loss_curve.py [--steps N] [--picture FILE.svg] [--json FILE] [--quick]

The model has T's shape (hidden 384, 8 layers, feed-forward 1,024) over bytes; the text is the source of Python's
standard library, a tenth of its files held out. All sides begin with the same weights and see the same rows in the same
order under the same schedule, clipping and AdamW:

* leveret, bf16: `optimizer_step` as `leveret pretrain` calls it (bf16 weights, fp32 masters);
* the reference: `MistralForCausalLM` in fp32, eager, with `torch.optim.AdamW`;
* its noise: the reference again, its weights at the start rounded to bf16 once and then trained in fp32. Two runs that
  differ by so little drift apart by themselves; a difference no larger than this one says nothing.

Differences are taken between means over 20 steps, as a single step's loss depends on its rows more than on anything.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fp8_loss import Text, train
from model_shape import QUICK, Shape

T = Shape(hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6, vocab_size=256)
WINDOW = 20
WARM_UP = 0.05  # as in fp8_loss.train
OURS, REFERENCE, NOISE = "leveret, bf16", "transformers, fp32", "the same from rounded weights"
COLORS = {OURS: "#2563eb", REFERENCE: "#d97706", NOISE: "#98a2b3"}


def train_reference(model_folder: Path, *, rounded: bool, steps: int, rows: int, length: int) -> dict[str, Any]:
    """Losses of each step, the loss on held-out rows, seconds; the same rows and rates as `fp8_loss.train`, seed 0."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from leveret.trainer.config import TrainingConfig
    from leveret.trainer.schedule import Schedule

    logging.disable_progress_bar()
    config = TrainingConfig(
        max_steps=steps,
        rows_per_step=rows,
        micro_batch_rows=rows,
        learning_rate=2e-3,
        warmup_fraction=WARM_UP,
    )
    schedule = Schedule(config=config, total_steps=steps)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).train()
    if rounded:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)

    def loss_of(text: Text, places: Sequence[int]) -> torch.Tensor:
        picked = [text.row(place) for place in places]
        ids = torch.from_numpy(np.stack([row.input_ids for row in picked])).long()
        targets = torch.from_numpy(np.stack([row.targets for row in picked])).long()
        logits = model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    text, losses, began = Text(length, held_out=False), [], time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(text, range(step * rows, (step + 1) * rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - began
    held_out = Text(length, held_out=True)
    with torch.no_grad():
        means = [loss_of(held_out, range(at, at + 8)).item() for at in range(0, 64, 8)]
    return {"losses": losses, "held_out": sum(means) / len(means), "seconds": seconds}


def write_initial(shape: Shape, folder: Path) -> None:
    """The weights that `fp8_loss.train` begins with, as a model directory."""
    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights
    from leveret.weights.save import save_model

    model = Decoder(ModelConfig(family="mistral", **vars(shape)))
    init_weights(model, 0)
    save_model(model, folder)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Means over WINDOW steps, one for each step that ends a window."""
    window = min(WINDOW, len(losses))
    return [sum(losses[at : at + window]) / window for at in range(len(losses) - window + 1)]


def farthest(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference between the smoothed curves, nats a token."""
    return max(abs(a - b) for a, b in zip(smoothed(one), smoothed(other), strict=True))


def table(found: Mapping[str, dict[str, Any]]) -> str:
    """A row for each side."""
    reference = found[REFERENCE]["losses"]
    lines = [
        "| run | first loss | last 20 steps | held out | farthest from it | seconds |",
        "|" + "---|" * 6,
    ]
    for side, run in found.items():
        losses = run["losses"]
        apart = "" if side == REFERENCE else f"{farthest(losses, reference):.4f}"
        numbers = f"{losses[0]:.4f} | {smoothed(losses)[-1]:.4f} | {run['held_out']:.4f}"
        lines.append(f"| {side} | {numbers} | {apart} | {run['seconds']:.0f} |")
    return "\n".join(lines)


def picture(found: Mapping[str, dict[str, Any]]) -> str:
    """The curves, and below them each one's distance to the reference, as one SVG."""
    reference = found[REFERENCE]["losses"]
    curves = {side: run["losses"] for side, run in found.items()}
    pairs = ((side, zip(smoothed(losses), smoothed(reference), strict=True)) for side, losses in curves.items())
    apart = {side: [a - b for a, b in pair] for side, pair in pairs if side != REFERENCE}
    legend = "".join(
        f'<text x="{60 + 220 * place}" y="18" fill="{COLORS[side]}">{side}</text>' for place, side in enumerate(found)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 520" font-family="sans-serif" font-size="12">'
        f'<rect width="720" height="520" fill="#fff"/>{legend}'
        + _chart(curves, top=40, height=260, title="loss, nats a byte")
        + _chart(apart, top=350, height=130, title=f"difference to the reference, means over {WINDOW} steps")
        + "</svg>\n"
    )


def _chart(curves: Mapping[str, Sequence[float]], *, top: int, height: int, title: str) -> str:
    values = [value for curve in curves.values() for value in curve]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    left, width = 60, 640
    longest = max(len(curve) for curve in curves.values())
    parts = [f'<text x="{left}" y="{top - 6}" fill="#667085">{title}</text>']
    for share in (0, 0.5, 1):
        at, value = top + height * (1 - share), low + span * share
        parts.append(f'<path d="M{left} {at}h{width}" stroke="#e4e7ec"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4}" text-anchor="end" fill="#667085">{value:.3g}</text>')
    for side, curve in curves.items():
        first = longest - len(curve)
        points = " ".join(
            f"{left + width * (first + place) / max(1, longest - 1):.1f},{top + height * (high - value) / span:.1f}"
            for place, value in enumerate(curve)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLORS[side]}" stroke-width="1.4"/>')
    parts.append(f'<text x="{left + width}" y="{top + height + 16}" text-anchor="end">step {longest}</text>')
    return "".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="default 300")
    parser.add_argument("--rows", type=int, default=4, help="of a step; default 4")
    parser.add_argument("--sequence-length", type=int, default=512, help="default 512")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves here, as SVG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every loss here")
    parser.add_argument("--quick", action="store_true", help="a toy model and three steps: does the script still work?")
    options = parser.parse_args()
    shape = Shape(**{**vars(QUICK), "vocab_size": 256}) if options.quick else T
    about = {"rows": options.rows, "length": options.sequence_length, "steps": 3 if options.quick else options.steps}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_initial(shape, Path(folder))
        for side, run in {
            OURS: lambda: train(shape, {}, seed=0, **about),
            REFERENCE: lambda: train_reference(Path(folder), rounded=False, **about),
            NOISE: lambda: train_reference(Path(folder), rounded=True, **about),
        }.items():
            found[side] = run()
            print(f"{side}: {about['steps']} steps in {found[side]['seconds']:.0f} s", file=sys.stderr, flush=True)
    print(table(found))
    first = abs(found[OURS]["losses"][0] - found[REFERENCE]["losses"][0])
    within = farthest(found[OURS]["losses"], found[REFERENCE]["losses"])
    noise = farthest(found[NOISE]["losses"], found[REFERENCE]["losses"])
    print(
        f"\nfirst losses {first:.4f} apart; smoothed curves {within:.4f} apart, the reference's own noise {noise:.4f}"
    )
    if options.picture is not None:
        options.picture.write_text(picture(found), encoding="utf-8")
    if options.json is not None:
        settings = {**vars(shape), **about}
        options.json.write_text(json.dumps({"settings": settings, "sides": found}, indent=1) + "\n", encoding="utf-8")
    if first > 0.01:
        print("the sides did not begin with the same loss: they do not do the same work", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
