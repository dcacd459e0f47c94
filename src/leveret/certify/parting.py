"""Where two models part: the first layer that answers differently although it was asked the same.

Both models run on the same ids with forward hooks that keep what goes in and out of every innermost module
(Linears, norms, the embedding). Module names are compared without a leading `model.`, so our decoder and
transformers' line up. Then, in the order in which the first model ran them, each module of the second is given the
*first* model's input:

    own error = rms(module_b(input_a) - output_a) / rms(output_a)

An error handed down from earlier layers does not count, so the culprit stands out even where everything after it
differs. If no module has an error of its own, the difference arises between them (attention, rotary positions, a
residual): then the first module is named whose input already differs.

Shape legend: T positions, I and O features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

SAME = 1e-4
"""Relative error up to which two float32 results count as the same."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one module read and wrote, the first time it ran."""

    module: nn.Module
    read: torch.Tensor
    wrote: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Culprit:
    """The module where two models part."""

    module: str
    """Its name, without a leading `model.`"""
    error: float
    """Its relative error, root mean square."""
    reason: str
    """What was seen, in words."""


def find_culprit(first: nn.Module, second: nn.Module, ids: list[int], *, lossy: bool) -> Culprit | None:
    """The module to look at; None when the models have no module name in common, or nothing differs.

    lossy: every module differs a little (a number format), so the one with the largest error of its own is named,
    not the first above rounding.
    """
    traces_first, traces_second = (_trace(model, ids) for model in (first, second))
    shared = [name for name in traces_first if name in traces_second]
    worst: Culprit | None = None
    for name in shared:
        error = _own_error(traces_first[name], traces_second[name])
        if error is None:
            continue
        found = Culprit(module=name, error=error, reason="given the same input, this module answers differently")
        if not lossy and not error <= SAME:
            return found
        if worst is None or not error <= worst.error:
            worst = found
    if lossy:
        return worst
    return _first_different_input(shared, traces_first, traces_second)


def _first_different_input(names: list[str], first: dict[str, Trace], second: dict[str, Trace]) -> Culprit | None:
    before: str | None = None
    for name in names:
        if first[name].read.is_floating_point():
            error = _relative(second[name].read, first[name].read)
            if error is not None and not error <= SAME:
                if before is None:
                    return Culprit(module="embed_tokens", error=error, reason="the embeddings of these ids differ")
                reason = f"its input differs though modules up to {before} agree: the difference arises between the two"
                return Culprit(module=name, error=error, reason=reason)
        before = name
    return None


@torch.no_grad()
def _own_error(first: Trace, second: Trace) -> float | None:
    """None when the two cannot be compared (other shapes)."""
    if first.read.shape != second.read.shape:
        return None
    read = first.read
    if read.is_floating_point():
        read = read.to(second.read.dtype)
    return _relative(second.module(read), first.wrote)


def _relative(value: torch.Tensor, reference: torch.Tensor) -> float | None:
    if value.shape != reference.shape:
        return None
    reference = reference.float()
    return float((value.float() - reference).norm() / reference.norm().clamp(min=1e-12))


def _trace(model: nn.Module, ids: list[int]) -> dict[str, Trace]:
    traces: dict[str, Trace] = {}
    device = next(model.parameters()).device
    with _recording(model, traces), torch.no_grad():
        model(torch.tensor([ids], device=device))
    return traces


@contextmanager
def _recording(model: nn.Module, traces: dict[str, Trace]) -> Iterator[None]:
    """Fill `traces`, in the order of running, with innermost modules that map one tensor to one tensor."""

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, read: tuple[object, ...], wrote: object) -> None:
            if len(read) == 1 and isinstance(read[0], torch.Tensor) and isinstance(wrote, torch.Tensor):
                traces.setdefault(name, Trace(module=module, read=read[0], wrote=wrote))

        return hook

    hooks = [
        module.register_forward_hook(keep(name.removeprefix("model.")))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
