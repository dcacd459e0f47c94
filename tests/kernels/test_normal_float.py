"""Four-bit numbers written out: every compiled build against PyTorch's operators, bit by bit."""

from __future__ import annotations

import pytest
import torch

from leveret.kernels.normal_float import BlockScales, FourBitNumbers, plain_write_out, write_out

COUNTS = (1, 2, 31, 64, 65, 100, 64 * 256, 64 * 256 * 2 + 70)


def some_numbers(count: int, *, double: bool, block: int = 64) -> FourBitNumbers:
    generator = torch.Generator().manual_seed(count)
    blocks = -(-count // block)
    scales = BlockScales(scales=torch.rand(blocks, generator=generator))
    if double:
        scales = BlockScales(
            codes=torch.randint(256, (blocks,), dtype=torch.uint8, generator=generator),
            code_values=torch.randn(256, generator=generator),
            group_scales=torch.rand(-(-blocks // 256), generator=generator),
            offset=0.37,
        )
    packed = torch.randint(256, (-(-count // 2),), dtype=torch.uint8, generator=generator)
    values = torch.randn(16, generator=generator)
    return FourBitNumbers(packed=packed, values=values, scales=scales, block=block, count=count)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("count", COUNTS)
def test_a_build_writes_the_bits_of_its_twin(build: str, count: int, double: bool) -> None:
    numbers = some_numbers(count, double=double)
    fast, plain = (torch.empty(count, dtype=torch.bfloat16) for _ in range(2))
    assert torch.equal(write_out(numbers, fast), plain_write_out(numbers, plain))


@pytest.mark.parametrize(
    ("first", "length"), [(0, 64), (64, 640), (64 * 300, 1000), (64 * 255, 64 * 2), (64 * 513, 70)]
)
def test_a_part_is_the_same_as_in_the_whole(build: str, first: int, length: int) -> None:
    numbers = some_numbers(64 * 514 + 6, double=True)
    whole = plain_write_out(numbers, torch.empty(numbers.count, dtype=torch.bfloat16))
    part = write_out(numbers, torch.empty(length, dtype=torch.bfloat16), first=first)
    assert torch.equal(part, whole[first : first + length])


def test_nothing_behind_the_part_is_written(build: str) -> None:
    memory = torch.full((200,), 7.0, dtype=torch.bfloat16)
    write_out(some_numbers(100, double=False), memory[:100])
    assert bool((memory[100:] == 7).all()) and not bool((memory[:100] == 7).all())


def test_blocks_of_another_size_are_written_too(build: str) -> None:
    numbers = some_numbers(1000, double=False, block=128)
    fast, plain = (torch.empty(1000, dtype=torch.bfloat16) for _ in range(2))
    assert torch.equal(write_out(numbers, fast), plain_write_out(numbers, plain))
