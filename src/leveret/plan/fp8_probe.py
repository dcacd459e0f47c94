"""The Linears of a model timed in bf16 and in FP8 on the GPU at hand, as they are trained: forward and backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from leveret.plan.fp8 import Advice, Shape, verdict_on

if TYPE_CHECKING:
    import torch

_SECONDS = 0.2  # for each shape and format


def gpu_at_hand() -> tuple[torch.device, str] | None:
    """A GPU that multiplies in 8 bits, and its name; None without one."""
    import torch

    from leveret.precision.fp8_product import FIRST_CAPABILITY

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < FIRST_CAPABILITY:
        return None
    return torch.device("cuda"), torch.cuda.get_device_name()


def measured_advice(
    shapes: Sequence[Shape], tokens: int, device: torch.device, name: str, *, seconds: float = _SECONDS
) -> list[Advice]:
    """What `advise` forecasts, measured; for the shapes that can be multiplied in 8 bits."""
    found = []
    for shape in shapes:
        if shape.kept is not None or shape.inputs % 16 or shape.outputs % 16:
            continue
        bf16, fp8 = (_seconds_of(shape, tokens, device, fp8=fp8, seconds=seconds) for fp8 in (False, True))
        found.append(
            Advice(
                shape=shape, device=name, tokens=tokens, bf16_seconds=bf16, fp8_seconds=fp8,
                verdict=verdict_on(bf16, fp8),
            )
        )  # fmt: skip
    return found


def _seconds_of(shape: Shape, tokens: int, device: torch.device, *, fp8: bool, seconds: float) -> float:
    """One Linear, forward and backward."""
    import torch
    from torch import nn

    from leveret.precision.fp8_linear import fp8_linears
    from leveret.precision.fp8_product import product_for
    from leveret.precision.fp8_scaling import Recipe

    model = nn.Sequential(nn.Linear(shape.inputs, shape.outputs, bias=False, device=device, dtype=torch.bfloat16))
    x = torch.randn(tokens, shape.inputs, device=device, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(tokens, shape.outputs, device=device, dtype=torch.bfloat16)
    with fp8_linears(model, ["0"] if fp8 else [], Recipe(history=16), product_for(device)[0], device) as scaling:

        def step() -> None:
            scaling.forget_step()
            torch.autograd.backward(model(x), gradient)

        step()
        scaling.end_step()
        step()  # now with scales that are known
        return _best(step, device, seconds)


def _best(step: Callable[[], None], device: torch.device, seconds: float, batch: int = 5) -> float:
    """The shortest mean over a few calls, in as many tries as `seconds` allow."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < seconds:
        wait()
        start = time.perf_counter()
        for _ in range(batch):
            step()
        wait()
        best = min(best, (time.perf_counter() - start) / batch)
    return best
