"""Guessing by lookup on a CPU: leveret's engine with and without it, on code and on answers that quote.

    python benchmarks/speculation_cpu.py [--json FILE] [--quick] [--model DIR]

Works: `code` continues modules of Python's standard library; `edits` writes a piece of them again with a name changed;
`quotes` answers questions about a passage with the passage's own sentences. With --model the model says greedily what
it likes. Without, the weights are random and the answers are given: every token is asked of the model, and then taken
from the text, as a model would that knows it. So the cost of a step is real, and so is how often text repeats itself;
how well some model writes is left out.

Both sides must give the same ids. In bfloat16 a model's own choice may differ by a rounding, which is then counted as
another answer; with given answers it cannot.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_shape import Shape, add_shape_options, shape_from, write_model
from side_by_side import Side, Works, alternate, report

MODULES = ("argparse", "dataclasses", "tarfile", "typing", "zipfile", "smtplib", "calendar", "statistics")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    model: Path
    dtype: str | None
    guess: bool
    given: bool
    works: dict[str, tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]]
    """Name -> prompts, each with the answer that follows in the text."""


class Given:
    """A constraint that lets a row say only what is written, but not without asking the model."""

    def __init__(self, answer: tuple[int, ...]) -> None:
        self._left = list(reversed(answer))

    @property
    def finished(self) -> bool:
        return not self._left

    def allowed_ids(self) -> Any:
        import numpy as np

        return np.array([self._left[-1]] * 2)  # a single one would be taken without asking

    def advance(self, token_id: int) -> None:
        assert token_id == self._left.pop()


def make(plan: Plan) -> Works:
    from leveret.engine.config import EngineConfig
    from leveret.engine.engine import Engine
    from leveret.engine.request import Request, SamplingParams
    from leveret.weights.load import load_model

    config = EngineConfig(reuse_prefixes=False, speculation="lookup" if plan.guess else None)
    engine = Engine(load_model(plan.model, dtype=plan.dtype).eval(), config)

    def work(texts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]) -> dict[str, Any]:
        before, answers = engine.stats, []
        for prompt, answer in texts:  # one stream after the other
            request = Request(
                prompt_ids=prompt,
                params=SamplingParams(max_tokens=len(answer)),
                constraint=Given(answer) if plan.given else None,
            )
            answers.append(list(engine.generate([request])[0].ids))
        after = engine.stats
        return {
            "answers": answers,
            "steps": after.steps - before.steps,
            "drafted": after.drafted_tokens - before.drafted_tokens,
            "accepted": after.accepted_tokens - before.accepted_tokens,
        }

    return {name: lambda texts=texts: work(texts) for name, texts in plan.works.items()}


def texts_of(tokenizer: Any, *, prompt_tokens: int, new_tokens: int, count: int) -> dict[str, Any]:
    """Prompts with what follows them, all from modules of the standard library."""
    draw = random.Random(0)
    works: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {"code": [], "edits": [], "quotes": []}
    for name in MODULES[:count]:
        source = (Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py").read_text(encoding="utf-8")
        ids = tokenizer.encode(source)
        first = draw.randrange(max(1, len(ids) // 2))
        code = ids[first : first + prompt_tokens]
        works["code"].append((tuple(code), tuple(ids[first + prompt_tokens :][:new_tokens])))
        for work, (question, answer) in (
            ("edits", renaming(tokenizer.decode(code[:new_tokens]))),
            ("quotes", quoting(name, source, letters=3 * prompt_tokens, draw=draw)),
        ):
            works[work].append((tuple(tokenizer.encode(question)), tuple(tokenizer.encode(answer)[:new_tokens])))
    return {name: tuple(texts) for name, texts in works.items()}


def renaming(code: str) -> tuple[str, str]:
    """A piece of code with the request to rename its commonest word, and the code with it renamed."""
    words = re.findall(r"[a-z_]{3,}", code) or ["self"]
    common = max(words, key=words.count)
    return f"{code}\n\n# The same with {common} renamed to new_{common}:\n", code.replace(common, f"new_{common}")


def quoting(name: str, source: str, *, letters: int, draw: random.Random) -> tuple[str, str]:
    """A passage of a module's sentences with a question, and an answer that quotes some of them."""
    sentences: list[str] = []
    for sentence in re.findall(r"[A-Z][^.`\"]{40,200}\.", source):
        if sum(map(len, sentences)) < letters:
            sentences.append(sentence)
    quoted = draw.sample(sentences, min(6, len(sentences)))
    question = f"{' '.join(sentences)}\n\nQuestion: what does the text say about {name}?\nAnswer:"
    return question, " " + " ".join(f"The text says: {each}" for each in quoted)


def first_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Where the answers of the two sides part, in words."""
    for row, (mine, other) in enumerate(zip(ours["answers"], theirs["answers"], strict=True)):
        if mine != other:
            return f"no: text {row} has another answer"
    return None


def made_model(shape: Shape, folder: Path) -> Any:
    """Random weights, and a tokenizer of the shape's vocabulary trained on the same modules."""
    from leveret.tokenizer.train import train_byte_bpe

    stdlib = Path(sysconfig.get_paths()["stdlib"])
    texts = [(stdlib / f"{name}.py").read_text(encoding="utf-8") for name in MODULES]
    tokenizer = train_byte_bpe(texts, vocab_size=shape.vocab_size, special_tokens=[])
    write_model(shape, folder)
    return tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser)
    parser.add_argument("--model", type=Path, metavar="DIR", help="a trained model; default: random weights")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--prompt-tokens", type=int, default=384, help="default 384")
    parser.add_argument("--new-tokens", type=int, default=128, help="default 128")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    options = parser.parse_args()
    shape = shape_from(options)
    sizes = (96, 48, 2) if options.quick else (options.prompt_tokens, options.new_tokens, len(MODULES))
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            tokenizer = made_model(shape, Path(folder))
        else:
            from leveret.tokenizer.files import Tokenizer

            tokenizer = Tokenizer.load(options.model)
        works = texts_of(tokenizer, prompt_tokens=sizes[0], new_tokens=sizes[1], count=sizes[2])
        sides = []
        for name, guess in (("lookup", True), ("plain", False)):
            plan = Plan(
                model=options.model or Path(folder),
                dtype=options.dtype,
                guess=guess,
                given=options.model is None,
                works=works,
            )
            sides.append(Side(name, make, plan))
        timings, checks, counts = [], {}, {}
        for name, texts in works.items():
            timing, checks[f"{name}: same ids"] = alternate(
                sides,
                name,
                amount=sum(len(answer) for _, answer in texts),
                unit="token",
                rounds=1 if options.quick else options.rounds,
                same=first_difference,
            )
            timings.append(timing)
            result = sides[0].do(name)[1]
            counts[name] = {key: result[key] for key in ("steps", "drafted", "accepted")}
            print(f"{name}: {counts[name]}")
        for side in sides:
            side.close()
    return report(
        f"one stream with and without guessing, {options.dtype}",
        timings,
        sides,
        checks,
        settings={**vars(shape), "dtype": options.dtype, "model": str(options.model), "counts": counts},
        packages=["leveret", "torch"],
        file=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
