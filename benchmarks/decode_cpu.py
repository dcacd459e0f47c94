"""Generation on a CPU: leveret's engine and transformers' `generate`, greedy, on the same weights and prompts.

    python benchmarks/decode_cpu.py [--json FILE] [--quick]

Works: `first token` reads one long prompt and gives one token; `decode 1` and `decode 8` continue one and eight short
prompts. Both sides hold the same random model in the same dtype; in float32 they must give the same ids.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_shape import Shape, add_shape_options, shape_from, write_model
from side_by_side import Side, Works, alternate, report


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    model: Path
    dtype: str
    works: dict[str, tuple[tuple[tuple[int, ...], ...], int]]
    """Name -> prompts of equal length, and how many tokens each gets."""


def make_ours(plan: Plan) -> Works:
    from leveret.engine.engine import Engine
    from leveret.engine.request import Request, SamplingParams
    from leveret.weights.load import load_model

    engine = Engine(load_model(plan.model, dtype=plan.dtype))

    def work(prompts: tuple[tuple[int, ...], ...], num_tokens: int) -> list[list[int]]:
        params = SamplingParams(max_tokens=num_tokens)
        requests = [Request(prompt_ids=prompt, params=params) for prompt in prompts]
        return [list(completion.ids) for completion in engine.generate(requests)]

    return {name: lambda about=about: work(*about) for name, about in plan.works.items()}


def make_theirs(plan: Plan) -> Works:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(plan.model, dtype=getattr(torch, plan.dtype)).eval()

    @torch.inference_mode()
    def work(prompts: tuple[tuple[int, ...], ...], num_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
        )
        return out[:, ids.shape[1] :].tolist()

    return {name: lambda about=about: work(*about) for name, about in plan.works.items()}


def works_of(shape: Shape, *, quick: bool, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """Prompts of random ids, and how far they are continued."""
    draw = random.Random(0)
    prompt_tokens, new_tokens = (24, 8) if quick else (prompt_tokens, new_tokens)

    def prompts(number: int, length: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(draw.randrange(shape.vocab_size) for _ in range(length)) for _ in range(number))

    return {
        "first token": (prompts(1, prompt_tokens), 1),
        "decode 1": (prompts(1, 16), new_tokens),
        "decode 8": (prompts(8, 16), new_tokens),
    }


def first_difference(ours: list[list[int]], theirs: list[list[int]]) -> str | None:
    """Where two lists of answers part, in words."""
    for row, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine != other:
            same = sum(1 for a, b in zip(mine, other, strict=False) if a == b)
            return f"no: answer {row} has {same} of {len(other)} ids in common"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="of `first token`; default 512")
    parser.add_argument("--new-tokens", type=int, default=128, help="of the decode works; default 128")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    options = parser.parse_args()
    shape = shape_from(options)
    works = works_of(shape, quick=options.quick, prompt_tokens=options.prompt_tokens, new_tokens=options.new_tokens)
    timings, checks = [], {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(shape, Path(folder))
        plan = Plan(model=Path(folder), dtype=options.dtype, works=works)
        sides = [Side("leveret", make_ours, plan), Side("transformers", make_theirs, plan)]
        for name, (prompts, num_tokens) in works.items():
            amount = len(prompts) * (len(prompts[0]) if num_tokens == 1 else num_tokens)
            rounds = 1 if options.quick else options.rounds
            timing, difference = alternate(
                sides, name, amount=amount, unit="token", rounds=rounds, same=first_difference
            )
            timings.append(timing)
            if options.dtype == "float32":  # in bfloat16 two right answers may differ by a rounding
                checks[f"{name}: same ids"] = difference
        for side in sides:
            side.close()
    return report(
        f"greedy generation, {options.dtype}",
        timings,
        sides,
        checks,
        settings={**vars(shape), "dtype": options.dtype},
        packages=["leveret", "torch", "transformers"],
        file=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
