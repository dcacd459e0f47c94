"""A file written past the system's cache is the file that plain writing makes, wherever its pieces begin and end."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leveret.allocator import PAGE
from leveret.weights.direct import STAGE, DirectFile, PlainFile
from leveret.weights.writer import WeightWriter

CONTENT = random.Random(7).randbytes(3 * STAGE + 5 * PAGE + 123)
real_pwrite = os.pwrite


def pieces(seed: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of pieces that make up the content, in any order: small ones, whole pages, more than a stage."""
    draw = random.Random(seed)
    edges = {0, len(CONTENT), PAGE, 3 * PAGE, 4 * PAGE + 1, STAGE + 17, 3 * STAGE}
    edges |= {draw.randrange(len(CONTENT)) for _ in range(8)}
    ordered = sorted(edges)
    found = list(itertools.pairwise(ordered))
    draw.shuffle(found)
    return iter(found)


def write(file: PlainFile, seed: int = 0) -> None:
    file.allocate(len(CONTENT))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda piece: file.write(memoryview(CONTENT)[slice(*piece)], piece[0]), pieces(seed)))
    file.close()


class Seen:
    """How much went which way; answers EINVAL to direct writes after the first `allowed`."""

    def __init__(self, allowed: float = float("inf"), short: int = 0) -> None:
        self.allowed, self.short, self.direct, self.plain = allowed, short, 0, 0

    def pwrite(self, handle: int, content: memoryview, position: int) -> int:
        if not is_direct(handle):
            self.plain += len(content)
            return real_pwrite(handle, content, position)
        if self.allowed <= 0:
            raise OSError(errno.EINVAL, "not so")
        self.allowed -= 1
        written = real_pwrite(handle, content[: self.short or None], position)
        self.direct += written
        return written


def is_direct(handle: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.fixture
def direct_folder(tmp_path: Path) -> Path:
    """A folder whose file system writes past its cache."""
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no O_DIRECT")
    try:
        os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    return tmp_path


@pytest.mark.parametrize("kind", [PlainFile, DirectFile])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_pieces_in_any_order_from_several_threads_make_the_file(
    kind: type[PlainFile], seed: int, tmp_path: Path
) -> None:
    write(kind(tmp_path / "file"), seed)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_lies_in_whole_pages_goes_past_the_cache(direct_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    monkeypatch.setattr(os, "pwrite", seen.pwrite)
    file = DirectFile(direct_folder / "file")
    file.write(CONTENT, 0)
    file.close()
    assert (seen.direct, seen.plain) == (len(CONTENT) // PAGE * PAGE, len(CONTENT) % PAGE)


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_a_file_system_that_opens_so_but_does_not_write_so(
    direct_folder: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    seen = Seen(allowed)
    monkeypatch.setattr(os, "pwrite", seen.pwrite)
    write(DirectFile(direct_folder / "file"))
    assert (direct_folder / "file").read_bytes() == CONTENT
    assert seen.plain > seen.direct


@pytest.mark.parametrize("short", [PAGE, 2 * PAGE])
def test_a_write_that_ends_early_is_gone_on_with(
    direct_folder: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    monkeypatch.setattr(os, "pwrite", Seen(short=short).pwrite)
    write(DirectFile(direct_folder / "file"))
    assert (direct_folder / "file").read_bytes() == CONTENT


def test_other_errors_are_told(direct_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, content: memoryview, position: int) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="no space left"):
        DirectFile(direct_folder / "file").write(CONTENT, 0)


def test_without_such_writing_everything_goes_the_plain_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    write(DirectFile(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_weights_written_past_the_cache_are_read_by_safetensors(tmp_path: Path) -> None:
    tensors = {"odd": torch.randn(3, 1001), "wide": torch.randn(300, 1024).bfloat16(), "one": torch.tensor(4.0)}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with WeightWriter(tmp_path, layout, direct=True) as writer:
        for name, tensor in tensors.items():
            for start in range(0, tensor.numel(), 70_001):
                writer.write(name, start, tensor.reshape(-1)[start : start + 70_001])
    held = load_file(tmp_path / "model.safetensors")
    assert held.keys() == tensors.keys()
    assert all(torch.equal(held[name], tensor) and held[name].dtype == tensor.dtype for name, tensor in tensors.items())
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert (8 + header) % PAGE == 0
