"""Where two models part: the first layer that answers differently although it was asked the same.

Both models run on the same ids with forward hooks that keep what goes in and out of every Linear (with the adapter on
it), norm and embedding. Module names are compared without a leading `model.`, so our decoder and transformers' line
up. Then, in the order in which the first model ran them, each module of the second is given the *first* model's input:

    own error = rms(module_b(input_a) - output_a) / rms(output_a)

An error handed down from earlier layers does not count, so the culprit stands out even where everything after it
differs. If no module has an error of its own, the difference arises between them (attention, rotary positions, a
residual): then the first module is named whose input already differs. Of a module that is at fault, the outputs that
differ are named, which are the rows of its matrix; of an embedding, the ids.

Shape legend: T positions, I and O features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

SAME = 1e-4
"""Relative error up to which two float32 results count as the same."""

MOST_NAMED = 4
"""Outputs or ids that are named, at most."""

BETWEEN = {"o_proj": " (attention: rotary positions, mask or scale)", "down_proj": " (the activation)"}
"""What lies before some modules and is no module itself."""


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

    @property
    def layer(self) -> int | None:
        """Its layer; None outside of the layers."""
        found = re.search(r"(?:^|\.)layers\.(\d+)\.", self.module)
        return None if found is None else int(found[1])


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
        if not lossy and not error <= SAME:
            return _at_fault(name, error, traces_first[name], traces_second[name])
        if worst is None or not (error <= worst.error or math.isnan(worst.error)):  # the first NaN is the one to see
            worst = Culprit(module=name, error=error, reason="")
    if lossy:
        return worst and _at_fault(worst.module, worst.error, traces_first[worst.module], traces_second[worst.module])
    return _first_different_input(shared, traces_first, traces_second)


def _at_fault(name: str, error: float, first: Trace, second: Trace) -> Culprit:
    reason = "given the same input, this module answers differently"
    return Culprit(module=name, error=error, reason=f"{reason}, {_outputs_that_differ(first, second)}")


@torch.no_grad()
def _outputs_that_differ(first: Trace, second: Trace) -> str:
    """Which features of the answer, or which ids, hold half of the largest error or more."""
    error = (_answer(second, first.read).float() - first.wrote.float()).abs().nan_to_num(nan=torch.inf)
    if first.read.is_floating_point():
        what, sizes = "outputs", error.flatten(0, -2).amax(0)
        names = torch.arange(len(sizes))
    else:
        what, sizes = "ids", error.amax(-1).flatten()
        names = first.read.flatten()
    loud = sorted(set(names[sizes * 2 >= sizes.max()].tolist()))
    if len(loud) * 4 > len(names) and len(loud) > MOST_NAMED:
        return f"in most of its {what}"
    named = ", ".join(str(index) for index in loud[:MOST_NAMED])
    return f"most in {what} {named}" + (f" and {len(loud) - MOST_NAMED} more" if len(loud) > MOST_NAMED else "")


def _first_different_input(names: list[str], first: dict[str, Trace], second: dict[str, Trace]) -> Culprit | None:
    before: str | None = None
    for name in names:
        if first[name].read.is_floating_point():
            error = _relative(second[name].read, first[name].read)
            if error is not None and not error <= SAME:
                if before is None:
                    return Culprit(module="embed_tokens", error=error, reason="the embeddings of these ids differ")
                reason = f"its input differs though modules up to {before} agree: the difference arises between the two"
                return Culprit(module=name, error=error, reason=reason + BETWEEN.get(name.rpartition(".")[2], ""))
        before = name
    return None


@torch.no_grad()
def _own_error(first: Trace, second: Trace) -> float | None:
    """None when the two cannot be compared (other shapes)."""
    if first.read.shape != second.read.shape:
        return None
    return _relative(_answer(second, first.read), first.wrote)


def _answer(trace: Trace, read: torch.Tensor) -> torch.Tensor:
    """What a module makes of another model's input."""
    answer: torch.Tensor = trace.module(read.to(trace.read.dtype) if read.is_floating_point() else read)
    return answer


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
    """Fill `traces`, in the order of running, with those of `_traced` that map one tensor to one tensor."""

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, read: tuple[object, ...], wrote: object) -> None:
            if len(read) == 1 and isinstance(read[0], torch.Tensor) and isinstance(wrote, torch.Tensor):
                traces.setdefault(name, Trace(module=module, read=read[0], wrote=wrote))

        return hook

    hooks = [module.register_forward_hook(keep(name.removeprefix("model."))) for name, module in _traced(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _traced(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The innermost modules; a Linear that wraps another, as an adapter's does, counts as one."""
    children = list(module.named_children())
    if not children or hasattr(module, "in_features"):
        yield name, module
        return
    for part, child in children:
        yield from _traced(child, f"{name}.{part}" if name else part)
