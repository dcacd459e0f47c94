"""Merging two models on a CPU: `leveret merge` and mergekit, from folders to a folder, time and peak memory.

    python benchmarks/merge_cpu.py [--methods linear slerp ties ...] [--float32] [--rounds N] [--json FILE] [--quick]

Two random bf16 models of 1.1 billion parameters (hidden 2048, 22 layers, 32/4 heads, vocabulary 32,000), a base for the
methods that need one, and a merged model on the disk: all between is on the clock, reading and writing included, and
what was written is flushed to the disk on both sides before the clock stops. Importing is not, but with --commands,
which times `leveret merge` and `mergekit-yaml` as commands from start to end. mergekit (pip install mergekit) runs
through its `run_merge`, with `lazy_unpickle`, `low_cpu_memory` and `async_write` (by its help the faster way to write),
without card and tokenizer; as its examples do in `dtype: bfloat16` (sums in bf16), or with --float32 in `dtype:
float32` and `out_dtype: bfloat16` (sums as ours). Every method has processes of its own, so each peak is one method's;
shown is the highest. Where the disk is slow, both wait for it: so writing as many bytes and flushing them, with nothing
to merge, is timed afterwards, past the system's cache and through it, and it is told what each side had to read from
the disk because the system's cache no longer held it. With --folder in memory (/dev/shm) the disk has no part in it.
Results: all tensors are compared, within the rounding of the peer's sums. For ties, so many values may differ by more:
the peer keeps exactly k of equal magnitudes, ours all of them, and votes may hang on a rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mergekit_peer import DENSITY, METHODS
from model_shape import QUICK, Shape
from side_by_side import Side, Timing, Works, alternate, report

SHAPE = Shape(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    vocab_size=32000,
)
STANDARD, CHANGE = 0.02, 0.1
"""Standard deviation of the base's weights, and how far the models are from it, in such deviations."""
ROUNDING = {"bfloat16": 2.0**-6, "float32": 2.0**-7}
"""Of a value, or of a usual one where it is small: some roundings to bf16, or one on each side."""
TIES_SHARE = 0.02
"""Of the values of a ties merge, so many may differ: those at the threshold, and votes decided by rounding."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides are told."""

    method: str
    folder: Path
    """Holds base/, a/ and b/."""
    output: Path
    peer_dtype: str = "bfloat16"
    commands: bool = False

    @property
    def base(self) -> Path | None:
        """The base, for methods that have one."""
        return self.folder / "base" if self.method in ("task-arithmetic", "ties") else None


def write_models(shape: Shape, folder: Path, seed: int = 0) -> None:
    """A base and two models near it, in bf16, tensor by tensor."""
    import torch

    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.families import family_for
    from leveret.weights.writer import WeightWriter

    config = ModelConfig(family="mistral", **vars(shape))
    family = family_for("mistral")
    with torch.device("meta"):
        tensors = Decoder(config).state_dict()
    layout = {family.stored_name(name): (torch.bfloat16, tuple(tensor.shape)) for name, tensor in tensors.items()}
    torch.manual_seed(seed)
    folders = [folder / name for name in ("base", "a", "b")]
    for path in folders:
        path.mkdir(parents=True)
        values = family.config_to_hf(config) | {"torch_dtype": "bfloat16"}
        (path / "config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
    with WeightWriter(folders[0], layout) as base, WeightWriter(folders[1], layout) as a, \
            WeightWriter(folders[2], layout) as b:  # fmt: skip
        for name, (_, size) in layout.items():
            origin = torch.randn(size).flatten() * STANDARD + (1.0 if name.endswith("norm.weight") else 0.0)
            for writer, distance in ((base, 0.0), (a, CHANGE), (b, CHANGE)):
                change = torch.randn(origin.shape) * STANDARD * distance if distance else 0.0
                writer.write(name, 0, (origin + change).bfloat16())


def make_ours(plan: Plan) -> Works:
    keys: dict[str, Any] = {"density": DENSITY} if plan.method == "ties" else {}
    if plan.method == "linear":
        keys["weights"] = [0.4, 0.6]
    if plan.base is not None:
        keys["base"] = str(plan.base)
    keys |= {"models": [str(plan.folder / name) for name in "ab"], "output": str(plan.output), "method": plan.method}
    keys["dtype"] = "bfloat16"
    if plan.commands:
        command = [sys.executable, "-m", "leveret", "merge", *(f"{key}={value}" for key, value in keys.items())]
        return {plan.method: into(plan.output, lambda: started(command))}
    from leveret.console import Console
    from leveret.merge.config import MergeConfig
    from leveret.merge.run import run

    config = MergeConfig(**keys)
    return {plan.method: into(plan.output, lambda: run(config, Console(quiet=True)))}


def make_theirs(plan: Plan) -> Works:
    import mergekit_peer as peer

    recipe = peer.recipe(plan)
    if plan.commands:
        command = peer.write_command(recipe, plan.folder / f"{plan.method}.yaml", plan.output)
        merge = partial(started, command)
    else:
        merge = peer.prepare(recipe, plan.output)

    def work() -> None:
        merge()
        for file in plan.output.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())

    return {plan.method: into(plan.output, work)}


def started(command: Sequence[str]) -> None:
    """Run a command to its end; what it says is shown if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")


def into(output: Path, work: Callable[[], object]) -> Callable[[], tuple[str, int]]:
    """`work` that writes `output` anew; its result is that folder, and the bytes read from the disk meanwhile."""

    def told() -> tuple[str, int]:
        shutil.rmtree(output, ignore_errors=True)
        before = bytes_from_disk()
        work()
        return str(output), bytes_from_disk() - before

    return told


def bytes_from_disk() -> int:
    """What the kernel has fetched from a disk for this process; 0 where it does not tell."""
    counts = Path("/proc/self/io")
    if not counts.exists():
        return 0
    return next(int(line.split()[1]) for line in counts.read_text().splitlines() if line.startswith("read_bytes"))


def seconds_of_writing(folder: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """How long it takes to write `size` bytes in blocks of 1 MiB and to flush them, with nothing to compute."""
    from leveret.weights.direct import DirectFile, PlainFile

    block, path = os.urandom(1 << 20), folder / "written"
    seconds: dict[str, list[float]] = {"through the cache": [], "past the cache": []}
    for _ in range(rounds):
        for kind, taken in zip((PlainFile, DirectFile), seconds.values(), strict=True):
            began = time.perf_counter()
            file = kind(path)
            for start in range(0, size, len(block)):
                file.write(block[: size - start], start)
            file.close()
            with open(path, "rb") as written:
                os.fsync(written.fileno())
            taken.append(time.perf_counter() - began)
            path.unlink()
    return seconds


def first_difference(plan: Plan, ours: str, theirs: str) -> str | None:
    """What differs between two merged models, or None."""
    import torch

    from leveret.weights.reader import WeightReader

    with WeightReader(Path(ours)) as left, WeightReader(Path(theirs)) as right:
        if set(left.tensors) != set(right.tensors):
            return f"tensors: {sorted(set(left.tensors) ^ set(right.tensors))[:3]}"
        for name, stored in left.tensors.items():
            off, step = 0, 1 << 22
            for start in range(0, stored.numel, step):
                stop = min(start + step, stored.numel)
                x, y = (reader.read(name, start, stop).float() for reader in (left, right))
                bound = ROUNDING[plan.peer_dtype] * torch.maximum(x.abs(), y.abs()).clamp_min(STANDARD)
                off += int(((x - y).abs() > bound).sum())
            if off > (TIES_SHARE * stored.numel if plan.method == "ties" else 0):
                return f"{off:,} of {stored.numel:,} values of {name}"
    return None


def time_method(plan: Plan, rounds: int, parameters: int) -> tuple[Timing, str | None, list[Side]]:
    """Both sides by turns, each into a folder of its own."""
    makers = (("leveret", make_ours), ("mergekit", make_theirs))
    sides = [
        Side(name, make, Plan(**vars(plan) | {"output": plan.output / f"{plan.method}-{name}"}))
        for name, make in makers
    ]
    reads: dict[str, list[int]] = {side.name: [] for side in sides}

    def same(ours: tuple[str, int], theirs: tuple[str, int]) -> str | None:
        for name, (_, count) in zip(reads, (ours, theirs), strict=True):
            reads[name].append(count)
        return first_difference(plan, ours[0], theirs[0])

    timing, difference = alternate(sides, plan.method, amount=parameters, unit="parameter", rounds=rounds, same=same)
    for side in sides:
        side.close()
        shutil.rmtree(plan.output / f"{plan.method}-{side.name}", ignore_errors=True)
    counts = {name: values[1:] for name, values in reads.items()}  # without the round that is not counted
    print(f"{plan.method}: " + ", ".join(_round_by_round(name, timing.seconds[name], counts[name]) for name in counts))
    return timing, difference, sides


def _round_by_round(name: str, seconds: Sequence[float], reads: Sequence[int]) -> str:
    return f"{name} " + "; ".join(
        f"{took:.1f} s, {count / 1e9:.2f} GB from the disk" for took, count in zip(seconds, reads, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all four")
    parser.add_argument("--commands", action="store_true", help="time whole commands, as people start them")
    parser.add_argument("--layers", type=int, default=SHAPE.num_hidden_layers, help="default 22: 1.1 billion")
    parser.add_argument("--float32", action="store_true", help="let the peer sum in float32")
    parser.add_argument(
        "--folder", type=Path, help="where the models are put, 12 GB of them; default: a temporary folder"
    )
    parser.add_argument("--rounds", type=int, default=5, help="merges that are timed; default 5")
    parser.add_argument("--quick", action="store_true", help="a toy model and one round: does the script still work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args()
    shape = QUICK if options.quick else Shape(**vars(SHAPE) | {"num_hidden_layers": options.layers})
    rounds = 1 if options.quick else options.rounds
    timings, checks, peaks, all_sides = [], {}, {}, []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_models(shape, Path(folder))
        size = (Path(folder) / "a" / "model.safetensors").stat().st_size // 2
        for method in options.methods:
            plan = Plan(method=method, folder=Path(folder), output=Path(folder),
                        peer_dtype="float32" if options.float32 else "bfloat16",
                        commands=options.commands)  # fmt: skip
            timing, difference, sides = time_method(plan, rounds, size)
            timings.append(timing)
            checks[f"{method}: the same model within the peer's rounding"] = difference
            peaks[method] = {side.name: side.peak_bytes for side in sides}
            all_sides.append(sides)
        writing = seconds_of_writing(Path(folder), 2 * size, rounds)
    for way, taken in writing.items():
        alone = f"{statistics.median(taken):.1f} s ({min(taken):.1f} to {max(taken):.1f})"
        print(f"writing {2 * size / 1e9:.2f} GB {way} and flushing them, nothing else: {alone}")
    worst = [max(pair, key=lambda side: side.peak_bytes) for pair in zip(*all_sides, strict=True)]
    return report(
        "merging two bf16 models" + (", whole commands" if options.commands else ""),
        timings,
        worst,
        checks,
        settings={
            **vars(shape),
            "peer_dtype": "float32" if options.float32 else "bfloat16",
            "peaks": peaks,
            "writing_seconds": writing,
        },
        packages=["leveret", "torch", "mergekit"],
        file=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
