"""PyTorch's own files: read value for value like torch does, and nothing in them is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from leveret.errors import CorruptedFile, MissingWeights, UnexpectedWeights, UnsafeFile
from leveret.weights.bin_file import open_bin
from leveret.weights.file_values import read_bin_tensor
from leveret.weights.reader import WeightReader
from leveret.weights.safetensors import find_weight_files, one_file

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn,
]  # fmt: skip


def content() -> dict[str, torch.Tensor]:
    """Tensors of every dtype, shared storages, turned and repeated ones, an empty one, a scalar, a parameter."""
    draw = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 8, generator=draw)
    tensors = {str(dtype): (whole * 3).to(dtype) for dtype in DTYPES}
    return tensors | {
        "whole": whole, "rows": whole[2:4], "turned": whole.T, "column": whole[:, 3],
        "repeated": whole[:1].expand(4, 8), "empty": torch.empty(0, 3), "scalar": torch.tensor(7.5),
        "parameter": torch.nn.Parameter(whole[1]),
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_every_tensor_is_read_as_torch_reads_it(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    kept = {name: value for name, value in content().items() if zipped or "float8" not in name}  # newer than streams
    torch.save(kept, path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)
    handle = os.open(path, os.O_RDONLY)
    described = open_bin(path).tensors
    assert described.keys() == expected.keys()
    for name, tensor in described.items():
        got = read_bin_tensor(handle, path, tensor)
        assert got.dtype == expected[name].dtype and got.shape == expected[name].shape, name
        assert torch.equal(got.double(), expected[name].double()), name
    os.close(handle)


def test_any_part_of_a_turned_tensor_is_read(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "pytorch_model.bin")
    with WeightReader(tmp_path) as reader:
        assert torch.equal(reader.read("turned", 5, 17), content()["turned"].reshape(-1)[5:17])
        assert torch.equal(reader.read("rows"), content()["rows"].reshape(-1))


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_a_file_that_asks_for_code_is_refused_and_nothing_is_run(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "x": Evil()}, "m.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeFile, match=r"asks for (posix|nt)\.system.*nothing in it was run"):
        open_bin(tmp_path / "m.bin")
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UnsafeFile, match="system"):
        open_bin(tmp_path / "bare.bin")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_tensor_is_named_and_left_out(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "fc._extra_state": io.BytesIO(b"scales"), "step": 3}
    torch.save(state, tmp_path / "m.bin")
    file = open_bin(tmp_path / "m.bin")
    assert list(file.tensors) == ["w"] and file.others == ("fc._extra_state", "step")
    with pytest.raises(UnexpectedWeights, match="step"):
        one_file(tmp_path / "m.bin")
    torch.save({name: state[name] for name in ("w", "fc._extra_state")}, tmp_path / "m.bin")
    assert list(one_file(tmp_path / "m.bin").file_of) == ["w"]  # what TransformerEngine adds is no weight


@pytest.mark.parametrize("kept", [0, 1, 10, 200, -1, -2000])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_a_file_that_is_cut_short_is_named(zipped: bool, kept: int, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    torch.save({"a": torch.ones(900), "b": torch.ones(300)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptedFile, match=r"m\.bin \(.* bytes\) cannot be read"):
        open_bin(path)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (b"<html>not found</html>", "cannot be read"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs's pointer"),
        (pickle.dumps([1]), "cannot be read"),
    ],
)
def test_what_is_no_file_of_weights_is_told(found: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(found)
    with pytest.raises(CorruptedFile, match=said):
        open_bin(tmp_path / "m.bin")


def test_a_trainers_checkpoint_and_a_list_are_told_apart_from_weights(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "a.bin")
    with pytest.raises(CorruptedFile, match=r"dictionaries \(model\) and no tensors"):
        open_bin(tmp_path / "a.bin")
    torch.save([torch.ones(1)], tmp_path / "b.bin")
    with pytest.raises(CorruptedFile, match="no dictionary of tensors, but list"):
        open_bin(tmp_path / "b.bin")


def test_shards_are_compared_with_their_index(tmp_path: Path) -> None:
    index = tmp_path / "pytorch_model.bin.index.json"
    torch.save({"a": torch.ones(1)}, tmp_path / "x.bin")
    torch.save({"b": torch.ones(2)}, tmp_path / "y.bin")
    index.write_text(json.dumps({"weight_map": {"a": "x.bin", "b": "y.bin"}}))
    with WeightReader(tmp_path) as reader:
        assert reader.read("b").tolist() == [1, 1]
    index.write_text(json.dumps({"weight_map": {"a": "x.bin", "b": "y.bin", "c": "y.bin"}}))
    with pytest.raises(MissingWeights, match=r"y\.bin lacks c"):
        find_weight_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "x.bin", "b": "z.bin"}}))
    with pytest.raises(MissingWeights, match=r"not there: z\.bin"):
        find_weight_files(tmp_path)
    torch.save({"b": torch.ones(2)}, tmp_path / "z.bin")
    torch.save({"a": torch.ones(1), "d": torch.ones(1)}, tmp_path / "x.bin")
    with pytest.raises(UnexpectedWeights, match=r"x\.bin holds d"):
        find_weight_files(tmp_path)


def test_the_description_is_read_without_torch(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "m.bin")
    code = (
        "import sys; from pathlib import Path; from leveret.weights.bin_file import open_bin; "
        f"open_bin(Path({str(tmp_path / 'm.bin')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
