"""The 8-bit formats: casts equal a table made by hand and another library's, bit for bit; scales are the formula."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from leveret.precision.fp8_format import E4M3, E5M2, amax_of, cast, compiled_round, norm_amax, round_to, scale_of


def table(exponent_bits, mantissa_bits, largest):
    """Every finite number >= 0 of a format, ascending, from its definition: sign, exponent, mantissa."""
    bias = 2 ** (exponent_bits - 1) - 1
    numbers = set()
    for exponent in range(2**exponent_bits):
        for mantissa in range(2**mantissa_bits):
            fraction = mantissa / 2**mantissa_bits
            number = (
                fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias)
            )  # subnormals, then the others
            if number <= largest:
                numbers.add(number)
    return sorted(numbers)


FORMATS = {
    "e4m3": (E4M3, table(4, 3, 448.0), ml_dtypes.float8_e4m3fn),
    "e5m2": (E5M2, table(5, 2, 57344.0), ml_dtypes.float8_e5m2),
}


def rounded(number, numbers):
    """To the nearest of the table, ties to the one of even place; saturated."""
    size = min(abs(number), numbers[-1])
    place = int(np.searchsorted(numbers, size))
    below = max(place - 1, 0)
    down, up = size - numbers[below], numbers[place] - size
    chosen = place if up < down or (up == down and place % 2 == 0) else below
    return math.copysign(numbers[chosen], number)


def samples(numbers):
    """All numbers of the format, all that lie halfway between two, their neighbours, and random ones."""
    exact = np.array(numbers, dtype=np.float32)
    halfway = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    near = np.concatenate([np.nextafter(halfway, np.float32(0)), np.nextafter(halfway, np.float32(1e9))])
    drawn = np.exp(np.random.default_rng(0).uniform(-16, 14, 500)).astype(np.float32)
    beyond = np.array([exact[-1] * factor for factor in (1.01, 1.0624, 1.0625, 1.07, 2, 1e6)], dtype=np.float32)
    every = np.concatenate([exact, halfway, near, drawn, beyond])
    return np.concatenate([every, -every])


@pytest.mark.parametrize("name", FORMATS)
def test_casts_equal_the_table_of_the_format_bit_for_bit(name):
    to, numbers, _ = FORMATS[name]
    assert len(numbers) == {"e4m3": 127, "e5m2": 124}[name]
    given = samples(numbers)
    found = cast(torch.from_numpy(given), torch.ones(()), to).data.float().tolist()
    wanted = [rounded(float(number), numbers) for number in given]
    assert found == wanted
    assert [math.copysign(1, number) for number in found] == [math.copysign(1, number) for number in wanted]


@pytest.mark.parametrize("name", FORMATS)
def test_casts_equal_ml_dtypes_byte_for_byte_and_beyond_the_largest_they_saturate(name):
    to, numbers, other = FORMATS[name]
    given = samples(numbers)
    found = cast(torch.from_numpy(given), torch.ones(()), to).data.view(torch.uint8).numpy()
    inside = np.clip(given, -to.largest, to.largest)
    assert np.array_equal(found, inside.astype(other).view(np.uint8))
    assert cast(torch.tensor([math.inf, -1e30]), torch.ones(()), to).data.tolist() == [to.largest, -to.largest]
    assert cast(torch.tensor([math.nan]), torch.ones(()), to).data.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_scaled_cast_rounds_once_and_keeps_its_amax(dtype):
    torch.manual_seed(0)
    x = (torch.randn(64, 32) * 1e-5).to(dtype)
    scale = scale_of(amax_of(x), E4M3.largest, margin=0, otherwise=1.0)
    stored = cast(x, scale, E4M3)
    exact = (x.float() * scale).numpy().astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(stored.data.view(torch.uint8).numpy(), exact.view(np.uint8))
    assert float(stored.data.float().abs().max()) == E4M3.largest
    assert float((stored.written_out() - x.float()).abs().max() / amax_of(x)) < 2**-4


def test_scales_are_the_formula_and_an_amax_that_says_nothing_leaves_them():
    amax = torch.tensor([2.0, 448.0, 0.0, math.inf, math.nan, 1e-38])
    largest = torch.tensor([448.0, 57344.0, 448.0, 448.0, 448.0, 57344.0])
    known = torch.tensor([1.0, 1.0, 3.0, 5.0, 7.0, 9.0])
    assert scale_of(amax, largest, margin=0, otherwise=known).tolist() == [
        224.0, 128.0, 3.0, 5.0, 7.0, torch.finfo(torch.float32).max,
    ]  # fmt: skip
    assert scale_of(amax, largest, margin=2, otherwise=known)[:3].tolist() == [56.0, 32.0, 3.0]


def test_the_amax_of_nothing_is_zero_and_a_nan_shows():
    assert float(amax_of(torch.empty(0, 4))) == 0
    assert float(amax_of(torch.tensor([-3.0, 2.0], dtype=torch.bfloat16))) == 3
    assert math.isnan(amax_of(torch.tensor([1.0, math.nan])))
    assert math.isinf(amax_of(torch.tensor([1.0, -math.inf])))


@pytest.mark.parametrize("bad", [0.0, math.nan, -math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_both_ways_to_find_an_amax_agree(bad, dtype):
    x = torch.randn(33, 17, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[3, 5] = bad
    assert torch.equal(amax_of(x).nan_to_num(nan=-1), norm_amax(x).nan_to_num(nan=-1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # of torch's own, when it compiles
@pytest.mark.parametrize("name", FORMATS)
def test_the_compiled_cast_rounds_as_the_plain_one(name):
    to, numbers, _ = FORMATS[name]
    given = torch.from_numpy(samples(numbers)).to(torch.bfloat16)
    for scale in (torch.ones(()), torch.tensor(0.37)):
        plain, compiled = (cast_(given, scale, to.largest, to.dtype) for cast_ in (round_to, compiled_round()))
        assert torch.equal(plain.view(torch.uint8), compiled.view(torch.uint8))
