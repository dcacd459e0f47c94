"""The packed tensors, read by a second implementation of the layout that shares no code with ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.errors import ConfigError
from leveret.kernels.int_matmul import GroupedIntegers, dequantize
from leveret.precision.gptq_layout import GptqStorage, pack, packed_shapes, unpack
from leveret.precision.rounding import round_to_nearest


def decode_by_the_book(stored: dict[str, np.ndarray], bits: int, plus_one: bool) -> np.ndarray:
    """A GPTQ reader in plain loops over bit fields: (O, I) float32."""
    qweight, qzeros, scales, g_idx = (stored[name] for name in ("qweight", "qzeros", "scales", "g_idx"))
    per_word, mask = 32 // bits, 2**bits - 1
    inputs, outputs = len(g_idx), scales.shape[1]
    weight = np.zeros((outputs, inputs), dtype=np.float32)
    for i in range(inputs):
        for o in range(outputs):
            group = g_idx[i]
            level = (int(qweight.view(np.uint32)[i // per_word, o]) >> (bits * (i % per_word))) & mask
            zero = (int(qzeros.view(np.uint32)[group, o // per_word]) >> (bits * (o % per_word))) & mask
            weight[o, i] = np.float32(scales[group, o]) * (level - (zero + int(plus_one)))
    return weight


def random_integers(outputs: int, inputs: int, groups: int, bits: int, seed: int) -> GroupedIntegers:
    generator = torch.Generator().manual_seed(seed)
    return GroupedIntegers(
        levels_OI=torch.randint(0, 2**bits, (outputs, inputs), generator=generator, dtype=torch.uint8),
        scales_GO=torch.randn(groups, outputs, generator=generator).to(torch.float16),
        zeros_GO=torch.randint(1, 2**bits, (groups, outputs), generator=generator, dtype=torch.int32),
        group_of_input=torch.arange(inputs, dtype=torch.int32) // (inputs // groups),
        bits=bits,
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_an_independent_reader_decodes_what_we_pack(bits: int, layout: str, symmetric: bool) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(3)) * 0.05
    quantized = round_to_nearest(weight, bits=bits, group_size=16, symmetric=symmetric)
    stored = {name: tensor.numpy() for name, tensor in pack(quantized, layout).items()}
    decoded = decode_by_the_book(stored, bits, plus_one=layout == "gptq")
    np.testing.assert_array_equal(decoded, dequantize(quantized, torch.float32).numpy())
    assert np.abs(decoded - weight.numpy()).max() < (0.02 if bits == 4 else 0.002)


def test_the_layout_of_one_known_matrix_is_pinned() -> None:
    levels = torch.arange(8, dtype=torch.uint8).repeat(8, 1)  # every output has levels 0..7 over its 8 inputs
    weight = GroupedIntegers(
        levels_OI=levels,
        scales_GO=torch.ones(1, 8, dtype=torch.float16),
        zeros_GO=torch.full((1, 8), 8, dtype=torch.int32),
        group_of_input=torch.zeros(8, dtype=torch.int32),
        bits=4,
    )
    packed = pack(weight)
    assert packed["qweight"].tolist() == [[0x76543210] * 8]
    assert packed["qzeros"].tolist() == [[0x77777777]], "zero point 8 is stored as 7"
    assert packed["g_idx"].tolist() == [0] * 8


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    outputs=st.sampled_from([8, 16, 24]),
    groups=st.sampled_from([1, 2, 4]),
    layout=st.sampled_from(["gptq", "gptq_v2"]),
    seed=st.integers(0, 1000),
)
def test_unpacking_is_the_inverse_of_packing(bits: int, outputs: int, groups: int, layout: str, seed: int) -> None:
    weight = random_integers(outputs, 32, groups, bits, seed)
    back = unpack(pack(weight, layout), bits=bits, checkpoint_format=layout)
    assert torch.equal(back.levels_OI, weight.levels_OI)
    assert torch.equal(back.zeros_GO, weight.zeros_GO)
    assert torch.equal(back.scales_GO, weight.scales_GO)


def test_reordered_columns_are_read_through_g_idx() -> None:
    weight = random_integers(8, 32, 4, 4, seed=1)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    reordered = GroupedIntegers(
        levels_OI=weight.levels_OI[:, order],
        scales_GO=weight.scales_GO,
        zeros_GO=weight.zeros_GO,
        group_of_input=weight.group_of_input[order],
        bits=4,
    )
    assert reordered.group_size is None and weight.group_size == 8
    torch.testing.assert_close(dequantize(reordered, torch.float32), dequantize(weight, torch.float32)[:, order])


def test_quantization_config_survives_a_round_trip() -> None:
    storage = GptqStorage(bits=4, group_size=None, symmetric=False, skipped=(r"model\.layers\.0\..*",))
    data = storage.to_dict()
    assert data["group_size"] == -1 and data["dynamic"] == {r"-:model\.layers\.0\..*": {}}
    assert GptqStorage.from_dict(data) == storage


def test_transformers_reads_our_quantization_config() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTQConfig.from_dict(GptqStorage(bits=4, group_size=128, symmetric=True).to_dict())
    assert (config.bits, config.group_size, config.sym, config.desc_act, config.format) == (4, 128, True, False, "gptq")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"bits": 3}, "bits is 3"),
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"dynamic": {"+:lm_head": {"bits": 8}}}, "lm_head"),
    ],
)
def test_a_storage_that_cannot_be_read_is_named(change: dict[str, object], named: str) -> None:
    data = GptqStorage(bits=4, group_size=32, symmetric=True).to_dict() | change
    with pytest.raises(ConfigError, match=named):
        GptqStorage.from_dict(data)


def test_features_that_do_not_fill_a_word_are_refused() -> None:
    storage = GptqStorage(bits=4, group_size=None, symmetric=True)
    with pytest.raises(ConfigError, match="12 output features are not a multiple of 8"):
        packed_shapes(16, 12, storage)
