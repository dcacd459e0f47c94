"""Many adapters of one model answered at once, on a CPU: leveret's engine, and peft's batches of mixed adapters.

    python benchmarks/adapters_cpu.py [--peer peft|apart] [--dtype bfloat16] [--adapters 8] [--json FILE] [--quick]

Works: `8 streams` and `32 streams` are greedy answers to prompts of 16 ids, the n-th request for the n-th adapter and
so on in turn; timed is the whole, prompts included. The model is random, the adapters are LoRAs of rank 16 on all
Linears but the output matrix, read by both sides from the same folders. peft multiplies the base once for a batch and
each adapter with its own rows (`generate(adapter_names=...)`), as leveret does; the peer `apart` is leveret with an
engine for each adapter. Whether all answer the same is compared in float32, with fewer ids.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_shape import add_shape_options, shape_from, write_model
from side_by_side import Side, Works, alternate, report

PROMPT = 16
RANK = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    model: Path
    adapters: tuple[Path, ...]
    dtype: str
    vocabulary: int
    works: dict[str, int]
    """Name -> streams."""
    new_tokens: int
    apart: bool = False

    def prompts(self) -> Callable[[int], list[list[int]]]:
        """Draws prompts of random ids; the n-th call gives the same on both sides."""
        draw = random.Random(0)
        return lambda count: [[draw.randrange(self.vocabulary) for _ in range(PROMPT)] for _ in range(count)]


def make_ours(plan: Plan) -> Works:
    from leveret.engine.backend import Backend
    from leveret.engine.engine import Engine
    from leveret.engine.request import Request, SamplingParams
    from leveret.weights.adapted import adapted
    from leveret.weights.load import load_model

    base = load_model(plan.model, dtype=plan.dtype)
    models = [adapted(base, folder) for folder in plan.adapters]
    engine, prompts = Engine(base), plan.prompts()
    backends: list[Backend] = [Engine(model) if plan.apart else engine.beside(model) for model in models]
    params = SamplingParams(max_tokens=plan.new_tokens)

    def work(count: int) -> list[list[int]]:
        asked = [(backends[n % len(backends)], prompt) for n, prompt in enumerate(prompts(count))]
        rows = [backend.submit(Request(prompt_ids=tuple(prompt), params=params)) for backend, prompt in asked]
        while any(row.finish_reason is None for row in rows):
            for each in dict.fromkeys(backend.runs_in for backend, _ in asked):
                each.step()
        return [list(row.completion().ids) for row in rows]

    return {name: lambda count=count: work(count) for name, count in plan.works.items()}


def make_peft(plan: Plan) -> Works:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(plan.model, dtype=getattr(torch, plan.dtype))
    names = [f"adapter {number}" for number in range(len(plan.adapters))]
    model = PeftModel.from_pretrained(model, plan.adapters[0], adapter_name=names[0])
    for name, folder in zip(names[1:], plan.adapters[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    # In the base's type, or every product with an adapter would turn its rows to float32 and back.
    model, prompts = model.to(getattr(torch, plan.dtype)).eval(), plan.prompts()

    @torch.inference_mode()
    def work(count: int) -> list[list[int]]:
        ids = torch.tensor(prompts(count))
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=plan.new_tokens, do_sample=False,
            pad_token_id=0, adapter_names=[names[n % len(names)] for n in range(count)],
        )  # fmt: skip
        answers: list[list[int]] = out[:, PROMPT:].tolist()
        return answers

    return {name: lambda count=count: work(count) for name, count in plan.works.items()}


def write_adapters(model: Path, folder: Path, count: int) -> tuple[Path, ...]:
    """Adapters that change what is answered."""
    import torch

    from leveret.model.lora import LoraSettings
    from leveret.model.lora_targets import add_lora
    from leveret.weights.adapter import save_adapter
    from leveret.weights.load import load_model

    folders = tuple(folder / f"adapter-{number}" for number in range(count))
    for number, each in enumerate(folders):
        decoder = load_model(model)
        add_lora(decoder, LoraSettings(rank=RANK, alpha=RANK), "all-linear", seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                if name.endswith("lora_B"):
                    parameter.normal_(0, 0.05, generator=generator)
        save_adapter(decoder, each, base=str(model))
    return folders


def first_difference(ours: list[list[int]], theirs: list[list[int]]) -> str | None:
    """Which answer is another, in words."""
    differing = [number for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)) if mine != other]
    if len({tuple(each) for each in ours}) < 2:
        return "no: all answers are the same, whoever gave them"
    return f"no: answers {differing} differ" if differing else None


def open_sides(peer: str, plan: Plan) -> list[Side]:
    theirs = Side(peer, make_peft if peer == "peft" else make_ours, replace(plan, apart=peer == "apart"))
    return [Side("leveret", make_ours, plan), theirs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser)
    parser.add_argument("--peer", choices=["peft", "apart"], default="peft", help="default peft")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="default bfloat16")
    parser.add_argument("--adapters", type=int, default=8, help="default 8")
    parser.add_argument("--new-tokens", type=int, default=64, help="default 64")
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 32], help="default 8 32")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    options = parser.parse_args()
    shape = shape_from(options)
    number, new = (3, 6) if options.quick else (options.adapters, options.new_tokens)
    streams = [4] if options.quick else options.streams
    timings, checks = [], {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        write_model(shape, base)
        plan = Plan(
            model=base,
            adapters=write_adapters(base, Path(folder), number),
            dtype=options.dtype,
            vocabulary=shape.vocab_size,
            works={f"{count} streams": count for count in streams},
            new_tokens=new,
        )
        exact = open_sides(options.peer, replace(plan, dtype="float32", new_tokens=min(new, 12)))
        for name in plan.works:
            (_, ours), (_, theirs) = (side.do(name) for side in exact)
            checks[f"{name}: same ids in float32"] = first_difference(ours, theirs)
        for side in exact:
            side.close()
        sides = open_sides(options.peer, plan)
        for name, count in plan.works.items():
            rounds = 1 if options.quick else options.rounds
            timing, _ = alternate(sides, name, amount=count * new, unit="token", rounds=rounds, same=lambda *_: None)
            timings.append(timing)
        for side in sides:
            side.close()
    return report(
        f"{number} adapters of one model, {options.dtype}",
        timings,
        sides,
        checks,
        settings={**vars(shape), "dtype": options.dtype, "adapters": number},
        packages=["leveret", "torch", "transformers", "peft"],
        file=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
