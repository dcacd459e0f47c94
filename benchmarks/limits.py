"""What this machine could do at best, measured in the same run: how fast it reads memory and multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Best of a few rounds; a neighbour's load makes each of them smaller, never larger."""

    read_bytes_per_second: float
    """From memory, buffers far beyond the caches."""
    bf16_operations_per_second: float
    """PyTorch's (oneDNN's) product of bfloat16 matrices, an addition and a multiplication each counted."""
    int8_operations_per_second: float
    """PyTorch's product of int8 matrices."""

    def as_text(self) -> str:
        """One line."""
        return (
            f"limits: memory {self.read_bytes_per_second / 1e9:.1f} GB/s, bf16 products "
            f"{self.bf16_operations_per_second / 1e12:.2f} and int8 {self.int8_operations_per_second / 1e12:.2f} T/s"
        )

    def as_data(self) -> dict[str, float]:
        """For the JSON file."""
        return asdict(self)


def measure(threads: int, *, quick: bool = False) -> Limits:
    """About five seconds."""
    import torch

    torch.set_num_threads(threads)
    megabytes, side = (8, 256) if quick else (512, 2048)
    buffer = torch.ones(megabytes * 2**20 // 4, dtype=torch.int32)
    left, right = torch.randn(side, side).bfloat16(), torch.randn(side, side).bfloat16()
    small = torch.randint(-127, 127, (side, side), dtype=torch.int8)
    work = 2 * side**3
    return Limits(
        read_bytes_per_second=buffer.numel() * 4 / _best(lambda: torch.max(buffer)),
        bf16_operations_per_second=work / _best(lambda: left @ right.T),
        int8_operations_per_second=work / _best(lambda: torch._int_mm(small, small.T)),
    )


def _best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
