"""Building and choosing the compiled kernels: what happens without a compiler, with old builds, with a wrong name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from leveret.errors import ConfigError
from leveret.kernels.native import build as building
from leveret.kernels.native import library
from leveret.kernels.rms_norm import plain_rms_norm, rms_norm
from leveret.processor import Processor


@pytest.fixture(autouse=True)
def _fresh_choice() -> Iterator[None]:
    library.choose.cache_clear()
    yield
    library.choose.cache_clear()


def test_the_best_build_is_chosen_and_named() -> None:
    if building.find_compiler() is None:
        pytest.skip("there is no C++ compiler here")
    choice = library.choose()
    assert choice.library is not None, choice.reason
    able = library.runnable()
    best = next(name for name in able if library.load(name).library is not None)
    assert best in able[:2], "only AMX may be announced and not work"
    assert choice.reason.startswith(f"compiled kernels for {best}")


def test_kernels_can_be_switched_off_and_the_twin_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "off")
    assert library.choose().library is None and "off" in library.choose().reason
    x, weight = torch.randn(3, 16).bfloat16(), torch.rand(16).bfloat16()
    mine = rms_norm(x, weight, eps=1e-5, scales_in_float32=False)
    assert torch.equal(mine, plain_rms_norm(x, weight, eps=1e-5, scales_in_float32=False))


def test_a_wrong_name_is_an_error_with_the_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "avx9")
    with pytest.raises(ConfigError, match=r"avx9.*plain"):
        library.choose()


def test_without_a_compiler_nothing_is_built_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert building.build_all(tmp_path) == ["no C++ compiler was found (CXX, g++, clang++, c++)"]
    monkeypatch.setattr(library, "library_path", lambda name: tmp_path / name)
    assert library.choose().library is None and "install leveret again" in library.choose().reason


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no such flag >&2\nexit 3\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    out = tmp_path / "out"
    out.mkdir()
    failures = building.build_all(out)
    assert len(failures) == len(building.instruction_sets())
    assert all("no such flag" in line for line in failures) and not list(out.iterdir())


def test_a_build_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next((n for n in building.instruction_sets() if building.library_path(n).is_file()), None)
    if name is None:
        pytest.skip("nothing was compiled at installation")
    monkeypatch.setattr(library, "source_hash", lambda: "another")
    choice = library.load(name)
    assert choice.library is None and "other sources" in choice.reason


def test_a_damaged_build_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.so").write_bytes(b"not a library")
    monkeypatch.setattr(library, "library_path", lambda name: tmp_path / "broken.so")
    choice = library.load("avx2")
    assert choice.library is None and "cannot be loaded" in choice.reason


def test_a_build_that_multiplies_wrongly_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    built = [name for name in library.runnable() if building.library_path(name).is_file()]
    if len(built) < 2:
        pytest.skip("fewer than two builds can run here")
    real = library.load

    def load(name: str) -> library.Choice:
        return library.Choice(None, "failed its check") if name == built[0] else real(name)

    monkeypatch.setattr(library, "load", load)
    choice = library.choose()
    assert choice.library is not None
    assert choice.reason.endswith(f"; {built[0]} was not: failed its check")


def test_a_build_that_ends_its_process_does_not_end_this_one(tmp_path: Path) -> None:
    compiler = building.find_compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler here")
    source, target = tmp_path / "dies.cpp", tmp_path / "dies.so"
    source.write_text('extern "C" int leveret_check_products() { __builtin_trap(); }', encoding="utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    problem = library._check_apart(target)
    assert problem is not None and problem.startswith("it ended with -")
    name = next((n for n in building.instruction_sets() if building.library_path(n).is_file()), None)
    if name in library.runnable():
        assert library._check_apart(building.library_path(name)) is None


def test_a_library_of_other_sources_or_headers_is_told_by_its_hash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = [each for each in building.FOLDER.iterdir() if each.suffix in (".cpp", ".h")]
    for each in files:
        (tmp_path / each.name).write_bytes(each.read_bytes())
    before = building.source_hash()
    monkeypatch.setattr(building, "FOLDER", tmp_path)
    assert building.source_hash() == before
    for each in files:
        changed = tmp_path / each.name
        changed.write_bytes(each.read_bytes() + b"\n")
        assert building.source_hash() != before, each.name
        changed.write_bytes(each.read_bytes())


@pytest.mark.parametrize(
    ("capability", "supported", "flags", "best"),
    [
        ("DEFAULT", set(), set(), "plain"),
        ("AVX2", set(), {"avx2"}, "avx2"),
        ("AVX2", {"_is_vnni_supported"}, {"avx2", "avx_vnni"}, "avx2_vnni"),
        ("AVX512", set(), {"avx2"}, "avx512"),
        ("AVX512", {"_is_vnni_supported"}, {"avx2"}, "avx512_vnni"),
        ("AVX512", {"_is_vnni_supported", "_is_avx512_bf16_supported"}, {"avx_vnni"}, "avx512_bf16"),
        ("AVX512", {"_is_vnni_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"}, set(), "avx512_amx"),
        ("AVX512", {"_is_avx512_bf16_supported", "_is_amx_tile_supported"}, set(), "avx512"),
    ],
)
def test_every_processor_gets_the_best_build_it_can_run(
    monkeypatch: pytest.MonkeyPatch, capability: str, supported: set[str], flags: set[str], best: str
) -> None:
    monkeypatch.setattr(library.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(library, "_has", lambda feature: feature in supported)
    described = Processor(name="x", flags=frozenset(flags))
    monkeypatch.setattr(library, "processor", lambda: described)
    runnable = library.runnable()
    assert runnable[0] == best
    assert runnable[-1] == "plain"
