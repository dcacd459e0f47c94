"""The AWQ layout, read by a second implementation of the published format that shares no code with ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leveret.errors import ConfigError
from leveret.kernels.int_matmul import GroupedIntegers, dequantize
from leveret.precision.awq_layout import AwqStorage
from leveret.precision.int4 import Int4Linear
from leveret.precision.rounding import round_to_nearest

STORAGE = AwqStorage(group_size=32)


def decode_by_the_book(stored: dict[str, np.ndarray], group_size: int) -> np.ndarray:
    """An AWQ reader in plain loops over bit fields: (O, I) float32. Bit 4*k of a word holds the output order[k]."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    qweight, qzeros, scales = stored["qweight"].view(np.uint32), stored["qzeros"].view(np.uint32), stored["scales"]
    inputs, outputs = qweight.shape[0], scales.shape[1]
    weight = np.zeros((outputs, inputs), dtype=np.float32)
    for i in range(inputs):
        group = i // group_size
        for word in range(outputs // 8):
            for field in range(8):
                o = 8 * word + order[field]
                level = (int(qweight[i, word]) >> 4 * field) & 15
                zero = (int(qzeros[group, word]) >> 4 * field) & 15
                weight[o, i] = np.float32(scales[group, o]) * (level - zero)
    return weight


def rounded(outputs: int = 16, inputs: int = 64) -> tuple[torch.Tensor, GroupedIntegers]:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(3)) * 0.05
    return weight, round_to_nearest(weight, bits=4, group_size=32, symmetric=False)


def test_an_independent_reader_decodes_what_we_pack() -> None:
    weight, quantized = rounded()
    decoded = decode_by_the_book({name: tensor.numpy() for name, tensor in STORAGE.pack(quantized).items()}, 32)
    np.testing.assert_array_equal(decoded, dequantize(quantized, torch.float32).numpy())
    assert np.abs(decoded - weight.numpy()).max() < 0.02


def test_the_layout_of_one_known_matrix_is_pinned() -> None:
    weight = GroupedIntegers(
        levels_OI=torch.arange(8, dtype=torch.uint8)[:, None].repeat(1, 8),  # output o has level o everywhere
        scales_GO=torch.ones(1, 8, dtype=torch.float16),
        zeros_GO=torch.arange(8, 16, dtype=torch.int32).unsqueeze(0),
        group_of_input=torch.zeros(8, dtype=torch.int32),
        bits=4,
    )
    packed = AwqStorage(group_size=None).pack(weight)
    assert packed["qweight"].tolist() == [[0x75316420]] * 8
    assert packed["qzeros"].tolist() == [[0xFDB9ECA8 - 2**32]], "zero points are stored as they are"
    assert sorted(packed) == ["qweight", "qzeros", "scales"]


def test_unpacking_is_the_inverse_of_packing() -> None:
    _, quantized = rounded()
    back = STORAGE.unpack(STORAGE.pack(quantized))
    assert torch.equal(back.levels_OI, quantized.levels_OI) and torch.equal(back.zeros_GO, quantized.zeros_GO)
    assert torch.equal(back.scales_GO, quantized.scales_GO)
    assert torch.equal(back.group_of_input, quantized.group_of_input)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("product", ["copy", "packed", "plain"])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_a_linear_in_this_layout_multiplies_with_what_is_stored(dtype: torch.dtype, product: str, rows: int) -> None:
    _, quantized = rounded(outputs=48, inputs=128)
    linear = Int4Linear(128, 48, storage=STORAGE)
    linear.fill(quantized)
    linear.product = product
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted = x.float() @ dequantize(quantized, torch.float32).T
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert float((linear(x).float() - wanted).norm() / wanted.norm()) < bound
    assert set(linear.state_dict()) == {"qweight", "qzeros", "scales"}


def test_zero_points_of_zero_have_a_meaning_here_and_are_read() -> None:
    _, quantized = rounded()
    stored = STORAGE.pack(quantized) | {"qzeros": torch.zeros(2, 2, dtype=torch.int32)}
    decoded = decode_by_the_book({name: tensor.numpy() for name, tensor in stored.items()}, 32)
    np.testing.assert_array_equal(decoded, dequantize(STORAGE.unpack(stored), torch.float32).numpy())


def test_quantization_config_survives_a_round_trip() -> None:
    storage = AwqStorage(group_size=None, skipped=("lm_head", "model.layers.0.block_sparse_moe.gate"))
    data = storage.to_dict()
    assert data["group_size"] == -1 and data["quant_method"] == "awq" and data["version"] == "gemm"
    assert AwqStorage.from_dict(data) == storage


def test_the_keys_of_autoawq_s_own_files_are_read() -> None:
    data = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM", "modules_to_not_convert": ["gate"]}
    assert AwqStorage.from_dict(data) == AwqStorage(group_size=64, skipped=("lm_head", "gate"))


def test_names_are_skipped_by_whole_parts() -> None:
    storage = AwqStorage(group_size=32, skipped=("lm_head", "gate", "layers.1"))
    assert storage.skips("model.layers.0.block_sparse_moe.gate") and storage.skips("model.layers.1.mlp.up_proj")
    assert not storage.skips("model.layers.0.mlp.gate_proj") and not storage.skips("model.layers.11.mlp.up_proj")


def test_transformers_reads_our_quantization_config() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AwqConfig.from_dict(AwqStorage(group_size=128).to_dict())
    assert (config.bits, config.group_size, config.zero_point, config.format) == (4, 128, True, "gemm")
    assert config.modules_to_not_convert == ["lm_head"]


@pytest.mark.parametrize("change", [{"bits": 8}, {"version": "gemv"}, {"zero_point": False}])
def test_a_storage_that_cannot_be_read_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="only 4 bits, version gemm"):
        AwqStorage.from_dict(STORAGE.to_dict() | change)


def test_outputs_that_do_not_fill_a_word_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 output features are not a multiple of 8"):
        STORAGE.shapes(16, 12)
