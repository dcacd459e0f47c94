"""Do two programs compute the same model? How far the logits of its rounded forms are from those of the whole one.

A distance is 1 - cosine of two logits after one prompt, each without its mean, which says nothing (log probabilities do
as well).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

FARTHEST = {4: 0.15, 8: 0.01, 16: 0.003}
"""Bits -> the most that may lie between a rounded model's logits and the whole one's."""


def whole_logits(model: Path, threads: int) -> list[float]:
    """Those of the bfloat16 model, by PyTorch, in a process of its own that is over when they are there."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_whole_logits, model, threads).result()


def _whole_logits(model: Path, threads: int) -> list[float]:
    import torch

    from leveret.weights.load import load_model

    torch.set_num_threads(threads)
    whole = load_model(model, dtype="bfloat16")
    with torch.inference_mode():
        return whole(torch.tensor([asked_of_all(whole.config.vocab_size)]))[0, -1].float().tolist()


def asked_of_all(vocabulary: int) -> list[int]:
    """The prompt whose logits are compared."""
    return [(37 * at) % vocabulary for at in range(24)]


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """1 - cosine, without the means."""
    import numpy as np

    a, b = (np.array(each) - np.mean(each) for each in (one, other))
    return 1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def judged(whole: Sequence[float], *, bits: int, **rounded: Sequence[float]) -> str | None:
    """What is wrong with the logits of rounded models, in words."""
    far = {name: distance(logits, whole) for name, logits in rounded.items()}
    if max(far.values()) < FARTHEST[bits]:
        return None
    return "no: 1 - cosine to the whole model's logits is " + ", ".join(f"{far[name]:.4f} ({name})" for name in far)
