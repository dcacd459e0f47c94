"""Pages of a mapped file that are let go: they can be read again, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from leveret.weights.file_values import let_go_of_pages, places_of_mapping
from leveret.weights.safetensors import one_file


def resident_kib(place: range) -> int:
    """KiB of the mapping at a place that are in this process's memory."""
    here = False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        if line.startswith(f"{place.start:x}-"):
            here = True
        elif here and line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError("no such mapping")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({name: torch.arange(300_000) + at for at, name in enumerate("ab")}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is mapped")
def test_pages_of_a_mapped_file_leave_memory_and_come_back(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        tensor = opened.get_tensor("a")
        (place,) = [each for each in places_of_mapping(file) if tensor.data_ptr() in each]
        total = int(tensor.sum())
        before = resident_kib(place)
        let_go_of_pages(tensor, [place])
        assert resident_kib(place) < before - 2000
        assert int(tensor.sum()) == total


def test_what_lies_elsewhere_keeps_its_values(file: Path) -> None:
    tensor = torch.arange(300_000)
    with safe_open(file, framework="pt") as opened:
        opened.get_tensor("a")
        let_go_of_pages(tensor, places_of_mapping(file))
    assert torch.equal(tensor, torch.arange(300_000)) and places_of_mapping(file) == []


def test_tensors_that_are_kept_while_others_are_read_stay_as_they_are(file: Path) -> None:
    kept = {name: tensor for name, _, tensor in one_file(file).tensors()}
    assert all(torch.equal(kept[name], torch.arange(300_000) + at) for at, name in enumerate("ab"))
