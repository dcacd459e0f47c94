"""Products with stored integers: every compiled build against the weight written out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from leveret.kernels.int_matmul import GroupedIntegers, dequantize
from leveret.kernels.integer_product import (
    FEW_ROWS,
    activation_block,
    compiled_refusal,
    multiply_compiled,
    pack_compiled,
    pack_words,
    round_compiled,
    round_plain,
    rounded_activations,
    stored_words,
    words_in_tiles,
)
from leveret.kernels.native import library

CPU = torch.device("cpu")


def some_weight(
    bits: int, *, outputs: int = 100, inputs: int = 320, group: int = 64, zeros: bool = True
) -> GroupedIntegers:
    generator = torch.Generator().manual_seed(bits)
    groups = inputs // group
    middle = torch.full((groups, outputs), 2 ** (bits - 1), dtype=torch.int32)
    return GroupedIntegers(
        levels_OI=torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8, generator=generator),
        scales_GO=(torch.rand(groups, outputs, generator=generator) * 0.02 + 1e-3).half(),
        zeros_GO=torch.randint(0, 2**bits, (groups, outputs), dtype=torch.int32, generator=generator)
        if zeros
        else middle,
        group_of_input=(torch.arange(inputs) // group).int(),
        bits=bits,
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, FEW_ROWS, FEW_ROWS + 1, 16, 37])
def test_the_product_is_that_of_the_written_out_weight(attention_build: str, bits: int, zeros: bool, rows: int) -> None:
    weight = some_weight(bits, zeros=zeros)
    packed = pack_compiled(weight)
    assert packed is not None and (packed.zeros is None) == (not zeros)
    x = torch.randn(rows, 320, generator=torch.Generator().manual_seed(rows)).bfloat16()
    exact = x.double() @ dequantize(weight, torch.float64).T
    found = multiply_compiled(x, packed)
    assert found.dtype == torch.bfloat16 and found.shape == (rows, 100)
    # Few rows: rounded once, at the end. Many: each weight is rounded to bfloat16 as well.
    assert (found - exact).norm() / exact.norm() < (3e-3 if rows <= FEW_ROWS else 5e-3)
    if rows <= FEW_ROWS:
        wide = multiply_compiled(x.float(), packed)
        assert wide.dtype == torch.float32 and (wide - exact).norm() / exact.norm() < 2e-6


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 160, 320])
@pytest.mark.parametrize("rows", [1, 3, 9, 37])
def test_rounded_activations_are_multiplied_exactly(attention_build: str, bits: int, group: int, rows: int) -> None:
    weight = some_weight(bits, group=group, zeros=group != 64)
    packed = pack_compiled(weight, "int8")
    assert packed is not None
    x = torch.randn(rows, 320, generator=torch.Generator().manual_seed(rows)) * torch.logspace(-2, 2, rows)[:, None]
    x[0, :32] = 0  # a block that holds nothing
    dense = dequantize(weight, torch.float64)
    twin = rounded_activations(x, packed).double() @ dense.T
    found = multiply_compiled(x, packed)
    assert found.dtype == torch.float32 and (found - twin).norm() / twin.norm() < 1e-6
    exact = x.double() @ dense.T
    assert 1e-4 < (found - exact).norm() / exact.norm() < 1.5e-2  # what rounding costs
    half = multiply_compiled(x.bfloat16(), packed)
    twin = rounded_activations(x.bfloat16(), packed).double() @ dense.T
    assert half.dtype == torch.bfloat16 and (half - twin).norm() / twin.norm() < 3e-3


def test_rounded_rows_give_the_same_bits_in_any_company(attention_build: str) -> None:
    packed = pack_compiled(some_weight(4, outputs=200), "int8")
    assert packed is not None
    x = torch.randn(37, 320).bfloat16()
    together = multiply_compiled(x, packed)
    for first, last in ((0, 1), (1, 3), (3, 10), (10, 37)):
        assert torch.equal(multiply_compiled(x[first:last], packed), together[first:last])


def test_rounded_activations_follow_the_order_of_the_columns_and_keep_what_is_no_number(build: str) -> None:
    # Drawn once: what lies halfway between whole numbers, one x in a few hundred thousand, may go either way.
    plain, generator = some_weight(4), torch.Generator().manual_seed(0)
    shuffled = dataclasses.replace(plain, group_of_input=plain.group_of_input[torch.randperm(320, generator=generator)])
    packed = pack_compiled(shuffled, "int8")
    assert packed is not None and packed.order is not None
    x = torch.randn(5, 320, generator=generator)
    x[4, 7] = float("nan")
    found = multiply_compiled(x, packed)
    twin = rounded_activations(x[:4], packed).double() @ dequantize(shuffled, torch.float64).T
    assert (found[:4] - twin).norm() / twin.norm() < 1e-6
    assert found[4].isnan().all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("outputs", [64, 100, 128])
def test_words_that_lie_along_the_inputs_are_packed_without_unpacking(bits: int, outputs: int) -> None:
    weight = some_weight(bits, outputs=outputs)
    fields = weight.levels_OI.T.reshape(320 * bits // 32, 32 // bits, outputs).int()
    words = sum((fields[:, j] << bits * j for j in range(1, 32 // bits)), start=fields[:, 0]).int()
    mine = pack_words(words_in_tiles(words), weight.scales_GO, weight.zeros_GO, bits=bits)
    theirs = pack_compiled(weight)
    assert theirs is not None and mine.zeros is not None and theirs.zeros is not None
    assert torch.equal(mine.words, theirs.words) and torch.equal(mine.scales, theirs.scales)
    assert torch.equal(mine.zeros, theirs.zeros)
    assert (mine.in_features, mine.out_features, mine.order) == (320, outputs, None)
    assert torch.equal(stored_words(mine.words, outputs), words)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_a_matrix_is_rounded_to_eight_bits_as_its_twin_does_it(build: str, size: float) -> None:
    weight = (torch.randn(100, 320, generator=torch.Generator().manual_seed(0)) * size).bfloat16()
    weight[3] = 0
    mine, plain = round_compiled(weight, group_size=64), round_plain(weight, group_size=64)
    theirs = pack_compiled(plain, "int8")
    assert theirs is not None and theirs.zeros is None
    assert torch.equal(mine.scales, theirs.scales)
    levels = [packed.words.view(torch.uint8).int()[:1] for packed in (mine, theirs)]
    assert (levels[0] - levels[1]).abs().max() <= 1 and (levels[0] != levels[1]).float().mean() < 1e-3
    if size > 1e-4:
        assert (dequantize(plain, torch.float32) - weight.float()).norm() / weight.float().norm() < 1e-2
    x = torch.randn(9, 320).bfloat16()
    found, exact = multiply_compiled(x, mine), multiply_compiled(x, theirs)
    assert (found.double() - exact.double()).norm() <= 2e-3 * exact.double().norm()


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 3e38])
def test_no_number_of_a_matrix_is_lost_in_rounding(build: str, odd: float) -> None:
    weight = torch.randn(100, 320, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[3, 70] = weight[99, 319] = odd
    found = multiply_compiled(torch.ones(1, 320).bfloat16(), round_compiled(weight, group_size=64))
    assert found.isfinite().logical_not().nonzero()[:, 1].tolist() == [3, 99]


def test_blocks_of_activations_divide_the_groups() -> None:
    assert [activation_block(group) for group in (32, 128, 160, 256, 352, 5632)] == [32, 128, 32, 128, 32, 128]


@pytest.mark.parametrize("rows", [1, 20])
def test_groups_in_another_order_are_put_in_order(build: str, rows: int) -> None:
    plain = some_weight(4)
    shuffled = GroupedIntegers(
        levels_OI=plain.levels_OI, scales_GO=plain.scales_GO, zeros_GO=plain.zeros_GO, bits=4,
        group_of_input=plain.group_of_input[torch.randperm(320, generator=torch.Generator().manual_seed(0))],
    )  # fmt: skip
    packed = pack_compiled(shuffled)
    assert packed is not None and packed.order is not None
    x = torch.randn(2, rows, 320).bfloat16()
    exact = x.double() @ dequantize(shuffled, torch.float64).T
    found = multiply_compiled(x, packed)
    assert found.shape == (2, rows, 100) and (found - exact).norm() / exact.norm() < 5e-3


def test_outputs_do_not_depend_on_the_rows_beside_them_or_on_threads(build: str) -> None:
    packed = pack_compiled(some_weight(4, outputs=200))
    assert packed is not None
    x = torch.randn(4, 320).bfloat16()
    together = multiply_compiled(x, packed)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(multiply_compiled(x, packed), together)
    finally:
        torch.set_num_threads(threads)
    alone = torch.cat([multiply_compiled(row[None], packed) for row in x])
    assert torch.equal(alone, together)


def test_it_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "on cuda" in str(compiled_refusal(in_features=64, group_size=32, device=torch.device("cuda")))
    monkeypatch.setattr(library, "choose", lambda: library.Choice(None, "no compiler"))
    assert compiled_refusal(in_features=64, group_size=32, device=CPU) == "no compiler"
    monkeypatch.undo()
    if library.choose().library is not None:
        assert "multiples of 32, not 64 and 16" in str(compiled_refusal(in_features=64, group_size=16, device=CPU))
        assert compiled_refusal(in_features=64, group_size=48, device=CPU) == "its groups are unequal"
        assert compiled_refusal(in_features=64, group_size=32, device=CPU) is None


def test_groups_of_unequal_size_are_left_to_others() -> None:
    weight = some_weight(4)
    weight.group_of_input[:10] = 1
    assert pack_compiled(weight) is None
