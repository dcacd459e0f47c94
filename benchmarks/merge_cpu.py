"""Merging two models on a CPU: `leveret merge` and mergekit, from folders to a folder, time and peak memory.

    python benchmarks/merge_cpu.py [--methods linear slerp ties ...] [--float32] [--rounds N] [--json FILE] [--quick]

Two random bf16 models of 1.1 billion parameters (hidden 2048, 22 layers, 32/4 heads, vocabulary 32,000), a base for the
methods that need one, and a merged model on the disk: all between is on the clock, reading and writing included, and
what was written is flushed to the disk on both sides before the clock stops. Importing is not. mergekit (pip install
mergekit) runs through its `run_merge`, with `lazy_unpickle` and `low_cpu_memory` as its README has them, without card
and tokenizer; as its examples do in `dtype: bfloat16` (sums in bf16), or with --float32 in `dtype: float32` and
`out_dtype: bfloat16` (sums as ours). Every method has processes of its own, so each peak is one method's; shown is the
highest. Where the disk is slow, both wait for it: so writing as many bytes and flushing them, with nothing to merge, is
timed afterwards, and it is told what each side had to read from the disk because the system's cache no longer held it.
With --folder in memory (/dev/shm) the disk has no part in it. Results: all tensors are compared, within the rounding of
the peer's sums. For ties, so many values may differ by more: the peer keeps exactly k of equal magnitudes, ours all of
them, and votes may hang on a rounding.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
METHODS = ("linear", "slerp", "task-arithmetic", "ties")
DENSITY = 0.2
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

    @property
    def base(self) -> Path | None:
        """The base, for methods that have one."""
        return self.folder / "base" if self.method in ("task-arithmetic", "ties") else None


def write_models(shape: Shape, folder: Path, seed: int = 0) -> None:
    """A base and two models near it, in bf16, tensor by tensor."""
    import json

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
    from leveret.console import Console
    from leveret.merge.config import MergeConfig
    from leveret.merge.run import run

    keys: dict[str, Any] = {"density": DENSITY} if plan.method == "ties" else {}
    if plan.method == "linear":
        keys["weights"] = [0.4, 0.6]
    if plan.base is not None:
        keys["base"] = str(plan.base)
    models = [str(plan.folder / name) for name in "ab"]
    config = MergeConfig(models=models, output=plan.output, method=plan.method, dtype="bfloat16", **keys)

    def work() -> str:
        shutil.rmtree(plan.output, ignore_errors=True)
        run(config, Console(quiet=True))
        return str(plan.output)

    return {plan.method: telling_reads(work)}


def make_theirs(plan: Plan) -> Works:
    import logging

    logging.disable(logging.WARNING)
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    recipe = MergeConfiguration.model_validate(_recipe(plan))
    options = MergeOptions(
        lazy_unpickle=True, low_cpu_memory=True, copy_tokenizer=False, write_model_card=False, quiet=True
    )

    def work() -> str:
        shutil.rmtree(plan.output, ignore_errors=True)
        run_merge(recipe, str(plan.output), options)
        for file in plan.output.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        return str(plan.output)

    return {plan.method: telling_reads(work)}


def telling_reads(work: Callable[[], str]) -> Callable[[], tuple[str, int]]:
    """`work`, and with its result the bytes that this process read from the disk meanwhile."""

    def told() -> tuple[str, int]:
        before = bytes_from_disk()
        return work(), bytes_from_disk() - before

    return told


def bytes_from_disk() -> int:
    """What the kernel has fetched from a disk for this process; 0 where it does not tell."""
    counts = Path("/proc/self/io")
    if not counts.exists():
        return 0
    return next(int(line.split()[1]) for line in counts.read_text().splitlines() if line.startswith("read_bytes"))


def seconds_of_writing(folder: Path, size: int, rounds: int) -> list[float]:
    """How long it takes to write `size` bytes and to flush them, in blocks of 4 MiB, with nothing to compute."""
    block, file, seconds = os.urandom(1 << 22), folder / "written", []
    for _ in range(rounds):
        began = time.perf_counter()
        with open(file, "wb", buffering=0) as handle:
            for start in range(0, size, len(block)):
                handle.write(block[: size - start])
            os.fsync(handle.fileno())
        seconds.append(time.perf_counter() - began)
        file.unlink()
    return seconds


def _recipe(plan: Plan) -> dict[str, Any]:
    """The same merge in mergekit's words."""
    a, b = (str(plan.folder / name) for name in "ab")
    recipe: dict[str, Any] = {"merge_method": plan.method.replace("-", "_"), "dtype": plan.peer_dtype}
    recipe |= {"out_dtype": "bfloat16"}
    if plan.method == "slerp":
        return recipe | {"base_model": a, "models": [{"model": a}, {"model": b}], "parameters": {"t": 0.5}}
    if plan.method == "linear":
        weights = {"a": 0.4, "b": 0.6}
        models = [{"model": path, "parameters": {"weight": weights[path[-1]]}} for path in (a, b)]
        return recipe | {"models": models, "parameters": {"normalize": False}}
    parameters = {"weight": 1.0} | ({"density": DENSITY} if plan.method == "ties" else {})
    models = [{"model": path, "parameters": parameters} for path in (a, b)]
    normalize = plan.method == "ties"
    return recipe | {"base_model": str(plan.base), "models": models, "parameters": {"normalize": normalize}}


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
                        peer_dtype="float32" if options.float32 else "bfloat16")  # fmt: skip
            timing, difference, sides = time_method(plan, rounds, size)
            timings.append(timing)
            checks[f"{method}: the same model within the peer's rounding"] = difference
            peaks[method] = {side.name: side.peak_bytes for side in sides}
            all_sides.append(sides)
        writing = seconds_of_writing(Path(folder), 2 * size, rounds)
    alone = f"{statistics.median(writing):.1f} s ({min(writing):.1f} to {max(writing):.1f})"
    print(f"writing {2 * size / 1e9:.2f} GB and flushing them, nothing else: {alone}")
    worst = [max(pair, key=lambda side: side.peak_bytes) for pair in zip(*all_sides, strict=True)]
    return report(
        "merging two bf16 models",
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
