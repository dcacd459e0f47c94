"""What this machine is: half a second of products, and the memory it has. Only this part of planning needs torch."""

from __future__ import annotations

import os
import time

from leveret.container import memory_limit
from leveret.plan.devices import Device

_SIDE = 2048
_SECONDS = 0.25  # for each of the two precisions


def measured(device: Device) -> Device:
    """`device` with the memory and the peaks of this machine's processor."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = min(machine, memory_limit() or machine)
    bf16, fp32 = (_tflops(precision) for precision in ("bfloat16", "float32"))
    return device.model_copy(update={"memory_gb": memory / 1e9, "bf16_tflops": bf16, "fp32_tflops": fp32})


def _tflops(precision: str) -> float:
    import torch

    from leveret.kernels.dense import matmul

    dtype = getattr(torch, precision)
    left, right, out = (torch.ones(_SIDE, _SIDE, dtype=dtype) for _ in range(3))
    matmul(left, right, out=out)  # the first call also chooses a kernel
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        matmul(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best / 1e12
