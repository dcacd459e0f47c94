"""A system prompt that many requests share, on a CPU: leveret's engine with and without reuse of prefixes.

    python benchmarks/prefix_cpu.py [--json FILE] [--quick]

Works: `together` submits all requests at once; `one by one` each when the last is done, as a chat does. The model is
random; what is counted is how many tokens it has to read, and what is timed is the whole until the last answer. Both
sides must give the same ids in float32.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_shape import add_shape_options, shape_from, write_model
from side_by_side import Side, Works, alternate, report


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    model: Path
    dtype: str
    reuse: bool
    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int


def make(plan: Plan) -> Works:
    from leveret.engine.config import EngineConfig
    from leveret.engine.engine import Engine
    from leveret.engine.request import Request, SamplingParams
    from leveret.weights.load import load_model

    engine = Engine(load_model(plan.model, dtype=plan.dtype).eval(), EngineConfig(reuse_prefixes=plan.reuse))
    requests = [
        Request(prompt_ids=prompt, params=SamplingParams(max_tokens=plan.new_tokens)) for prompt in plan.prompts
    ]

    def work(at_once: bool) -> dict[str, Any]:
        engine.forget()
        before = engine.stats
        groups = [requests] if at_once else [[request] for request in requests]
        answers = [list(each.ids) for group in groups for each in engine.generate(group)]
        return {"answers": answers, "read": engine.stats.prefill_tokens - before.prefill_tokens}

    return {"together": lambda: work(True), "one by one": lambda: work(False)}


def difference_in(checked: bool) -> Any:
    """Compares two results; unchecked, says nothing (in bfloat16 two right answers may differ by a rounding)."""

    def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
        same = ours["answers"] == theirs["answers"] or not checked
        return None if same else "no: the answers differ"

    return compare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--requests", type=int, default=32, help="default 32")
    parser.add_argument("--shared-tokens", type=int, default=400, help="of the system prompt; default 400")
    parser.add_argument("--own-tokens", type=int, default=30, help="of each request besides; default 30")
    parser.add_argument("--new-tokens", type=int, default=16, help="default 16")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    options = parser.parse_args()
    shape, draw = shape_from(options), random.Random(0)
    number, shared, own, new = (6, 100, 10, 3) if options.quick else (
        options.requests, options.shared_tokens, options.own_tokens, options.new_tokens
    )  # fmt: skip
    system = tuple(draw.randrange(shape.vocab_size) for _ in range(shared))
    prompts = tuple((*system, *(draw.randrange(shape.vocab_size) for _ in range(own))) for _ in range(number))
    timings, checks, read = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(shape, Path(folder))
        sides = [
            Side(
                name, make, Plan(model=Path(folder), dtype=options.dtype, reuse=reuse, prompts=prompts, new_tokens=new)
            )
            for name, reuse in (("reuse", True), ("plain", False))
        ]
        for name in ("together", "one by one"):
            timing, checks[f"{name}: same ids"] = alternate(
                sides,
                name,
                amount=number,
                unit="request",
                rounds=1 if options.quick else options.rounds,
                same=difference_in(options.dtype == "float32"),
            )
            timings.append(timing)
            read[name] = {side.name: side.do(name)[1]["read"] for side in sides}
            print(f"{name}: tokens read {read[name]}, {read[name]['plain'] / read[name]['reuse']:.1f} times fewer")
        for side in sides:
            side.close()
    return report(
        f"{number} requests that share {shared} tokens, {options.dtype}",
        timings,
        sides,
        checks,
        settings={**vars(shape), "dtype": options.dtype, "tokens_read": read},
        packages=["leveret", "torch"],
        file=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
