"""Files written piece by piece are those that safetensors writes at once, and pieces are read back from anywhere."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leveret.errors import CorruptedFile
from leveret.weights.reader import WeightReader
from leveret.weights.writer import WeightWriter

TENSORS = {
    "a": torch.arange(60, dtype=torch.bfloat16).reshape(6, 10),
    "counts": torch.arange(7, dtype=torch.int64),
    "b": torch.arange(12, dtype=torch.float32).reshape(2, 3, 2),
    "flag": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "none": torch.empty(0, 4),
}
LAYOUT = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}


def write(folder: Path, **options: int) -> None:
    with WeightWriter(folder, LAYOUT, **options) as writer, ThreadPoolExecutor(2) as pool:
        for name, tensor in reversed(TENSORS.items()):
            flat = tensor.reshape(-1)
            list(pool.map(lambda start, name=name, flat=flat: writer.write(name, start, flat[start : start + 4]),
                          range(0, flat.numel(), 4)))  # fmt: skip


@pytest.mark.parametrize("shard_bytes", [10**9, 100])
def test_pieces_in_any_order_make_the_files(tmp_path: Path, shard_bytes: int) -> None:
    write(tmp_path, shard_bytes=shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 100)
    held = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert held.keys() == TENSORS.keys()
    assert all(torch.equal(held[name], tensor) and held[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == TENSORS.keys()
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())


def test_any_part_is_read_from_any_file(tmp_path: Path) -> None:
    write(tmp_path, shard_bytes=100)
    with WeightReader(tmp_path) as reader:
        assert reader.tensors["a"].shape == (6, 10) and reader.tensors["a"].dtype == torch.bfloat16
        assert torch.equal(reader.read("a", 13, 47), TENSORS["a"].reshape(-1)[13:47])
        assert torch.equal(reader.read("scalar"), TENSORS["scalar"].reshape(1))
        assert reader.read("none").numel() == 0


def test_bin_files_are_read_in_parts_as_well(tmp_path: Path) -> None:
    torch.save({"a": TENSORS["a"].T}, tmp_path / "pytorch_model.bin")
    with WeightReader(tmp_path) as reader:
        assert torch.equal(reader.read("a", 5, 30), TENSORS["a"].T.reshape(-1)[5:30])


def test_values_that_never_came_are_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="were not written"), WeightWriter(tmp_path, LAYOUT) as writer:
        writer.write("a", 0, TENSORS["a"].reshape(-1)[:59])


def test_an_error_inside_leaves_no_index(tmp_path: Path) -> None:
    with pytest.raises(KeyError), WeightWriter(tmp_path, LAYOUT, shard_bytes=100):
        raise KeyError("something")
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_a_file_that_is_cut_short_while_it_is_read_is_told(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"].clone()}, tmp_path / "model.safetensors")
    with WeightReader(tmp_path) as reader:
        with open(tmp_path / "model.safetensors", "r+b") as file:
            file.truncate((tmp_path / "model.safetensors").stat().st_size - 8)
        with pytest.raises(CorruptedFile, match="ends inside a tensor"):
            reader.read("a")
