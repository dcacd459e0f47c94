"""Generation on a CPU: leveret's engine and transformers' `generate`, greedy, on the same weights and prompts.

    python benchmarks/decode_cpu.py [--json FILE] [--quick]

Works: `first token` reads one long prompt and gives one token; `decode 1` and `decode 8` continue one and eight short
prompts; every round has prompts of its own, which no cache has seen, the same on both sides. Both hold the same random
model in the same dtype; in float32 they must give the same ids.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_shape import add_shape_options, shape_from, write_model
from side_by_side import Side, Works, alternate, report


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    model: Path
    dtype: str
    vocabulary: int
    works: dict[str, tuple[int, int, int]]
    """Name -> how many prompts, their length, and how many tokens each gets."""

    def prompts(self) -> Callable[[int, int], list[list[int]]]:
        """Draws prompts of random ids; the n-th call gives the same on both sides."""
        draw = random.Random(0)
        return lambda count, length: [[draw.randrange(self.vocabulary) for _ in range(length)] for _ in range(count)]


def make_ours(plan: Plan) -> Works:
    from leveret.engine.engine import Engine
    from leveret.engine.request import Request, SamplingParams
    from leveret.weights.load import load_model

    engine, prompts = Engine(load_model(plan.model, dtype=plan.dtype)), plan.prompts()

    def work(count: int, length: int, num_tokens: int) -> list[list[int]]:
        params = SamplingParams(max_tokens=num_tokens)
        requests = [Request(prompt_ids=tuple(prompt), params=params) for prompt in prompts(count, length)]
        return [list(completion.ids) for completion in engine.generate(requests)]

    return {name: lambda about=about: work(*about) for name, about in plan.works.items()}


def make_theirs(plan: Plan) -> Works:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(plan.model, dtype=getattr(torch, plan.dtype)).eval()
    prompts = plan.prompts()

    @torch.inference_mode()
    def work(count: int, length: int, num_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts(count, length))
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
        )
        return out[:, ids.shape[1] :].tolist()

    return {name: lambda about=about: work(*about) for name, about in plan.works.items()}


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
    long, new = (24, 8) if options.quick else (options.prompt_tokens, options.new_tokens)
    works = {"first token": (1, long, 1), "decode 1": (1, 16, new), "decode 8": (8, 16, new)}
    timings, checks = [], {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(shape, Path(folder))
        plan = Plan(model=Path(folder), dtype=options.dtype, vocabulary=shape.vocab_size, works=works)
        sides = [Side("leveret", make_ours, plan), Side("transformers", make_theirs, plan)]
        for name, (count, length, num_tokens) in works.items():
            amount = count * (length if num_tokens == 1 else num_tokens)
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
