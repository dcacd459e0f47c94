"""The dynamic 8-bit code is bitsandbytes', and its errors stay where the paper puts them."""

import warnings

import pytest
import torch

from leveret.precision.dynamic8 import BLOCK, DynamicCode, dynamic_values

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bitsandbytes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("bitsandbytes.functional")


@pytest.mark.parametrize("signed", [True, False])
def test_the_values_are_those_of_bitsandbytes(bitsandbytes, signed):
    theirs = bitsandbytes.create_dynamic_map(signed)
    assert torch.equal(torch.tensor(dynamic_values(signed=signed)), theirs)


@pytest.mark.parametrize("size", [BLOCK * 3, BLOCK * 2 + 17, 5])
def test_scales_are_those_of_bitsandbytes_and_codes_too_where_it_looks_up_the_nearest(bitsandbytes, size):
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(size)) ** 5
    code = DynamicCode(signed=True, device=CPU)
    codes, scales = code.quantize(numbers)
    theirs, state = bitsandbytes.quantize_blockwise(numbers, blocksize=BLOCK)
    torch.testing.assert_close(scales, state.absmax)
    # Its kernel for CPUs looks small numbers up coarsely; the one for GPUs, and ours, take the nearest value.
    shares = numbers / scales.repeat_interleave(BLOCK)[:size]
    large = shares.abs() > 0.1
    assert (codes == theirs)[large].float().mean() > 0.98, "only ties may go either way"
    errors = [(code.values[each.long()] - shares).abs() for each in (codes, theirs)]
    assert bool((errors[0] <= errors[1] + 1e-7).all())


def test_every_code_is_the_nearest_value():
    code = DynamicCode(signed=True, device=CPU)
    numbers = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) ** 5
    codes, scales = code.quantize(numbers)
    distances = (numbers[:, None] / scales - code.values).abs()
    torch.testing.assert_close(distances.gather(1, codes.long()[:, None])[:, 0], distances.amin(1), rtol=0, atol=1e-7)
    torch.testing.assert_close(code.dequantize(codes, scales), code.values[codes.long()] * scales)


def test_large_entries_lose_less_than_one_per_cent_and_a_million_times_smaller_ones_keep_their_size():
    code = DynamicCode(signed=False, device=CPU)
    numbers = torch.logspace(-6, 0, BLOCK)
    back = code.dequantize(*code.quantize(numbers))
    relative = ((back - numbers) / numbers).abs()
    assert relative[numbers > 0.1].max() < 0.03
    assert relative[numbers > 1e-5].max() < 0.6
    assert back[-1] == 1.0


def test_zeros_stay_zeros_and_an_outlier_spoils_only_its_block():
    code = DynamicCode(signed=True, device=CPU)
    numbers = torch.zeros(3 * BLOCK)
    numbers[BLOCK : 2 * BLOCK] = 1e-4
    numbers[0] = 1e6
    back = code.dequantize(*code.quantize(numbers))
    assert torch.equal(back, numbers)


@pytest.mark.parametrize("signed", [True, False])
def test_the_table_finds_the_code_that_a_binary_search_finds(signed):
    code = DynamicCode(signed=signed, device=CPU)
    upper = torch.arange(2**16, dtype=torch.int64)
    lower = torch.randint(0, 2**16, (4, 2**16), generator=torch.Generator().manual_seed(0))
    shares = ((upper << 16) | lower).to(torch.int32).view(torch.float32).flatten()
    shares = torch.cat([shares[shares.abs() <= 1], code._borders, torch.tensor([-1.0, 0.0, -0.0, 1.0])])
    shares = shares if signed else shares[shares >= 0]
    assert torch.equal(code._nearest(shares), torch.bucketize(shares, code._borders, out_int32=True))
