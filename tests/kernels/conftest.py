"""Every compiled build that this processor can run, one after another."""

from __future__ import annotations

from pathlib import Path

import pytest

from leveret.kernels.native import library
from leveret.kernels.native.build import X86_FLAGS, build_one, find_compiler, instruction_sets, library_path


def skip_without_tiles(name: str, choice: library.Choice) -> None:
    """Some virtual machines announce AMX and do not run it; the other builds must work."""
    if name == "avx512_amx" and choice.library is None:
        pytest.skip(choice.reason)


@pytest.fixture(params=sorted(instruction_sets()))
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a build, which is the one that runs during the test."""
    name: str = request.param
    if name not in library.runnable():
        pytest.skip(f"this processor cannot run {name}")
    if not library_path(name).is_file():
        pytest.skip(f"{name} was not compiled: there was no C++ compiler at installation")
    choice = library.load(name)
    skip_without_tiles(name, choice)
    assert choice.library is not None, choice.reason
    monkeypatch.setattr(library, "choose", lambda: choice)
    return name


@pytest.fixture(scope="session")
def emulated_tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build for AMX with its instructions written out in C++, for processors without them."""
    compiler = find_compiler()
    if compiler is None or "avx2" not in library.runnable():
        pytest.skip("there is no C++ compiler here, or no AVX2")
    target = tmp_path_factory.mktemp("emulated") / "tiles.so"
    flags = (*X86_FLAGS["avx2"], "-O1", "-DLEVERET_TILES", "-DLEVERET_EMULATED_TILES")
    problem = build_one(compiler, flags, target)
    assert problem is None, problem
    return target


@pytest.fixture(params=[*sorted(instruction_sets()), "emulated tiles"])
def attention_build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `build`, and the emulated tiles, for kernels that multiply in tiles."""
    if request.param == "emulated tiles":
        path = request.getfixturevalue("emulated_tiles")
        monkeypatch.setattr(library, "library_path", lambda name: path)
    elif request.param not in library.runnable():
        pytest.skip(f"this processor cannot run {request.param}")
    elif not library_path(request.param).is_file():
        pytest.skip(f"{request.param} was not compiled: there was no C++ compiler at installation")
    choice = library.load("avx2" if request.param == "emulated tiles" else request.param)
    skip_without_tiles(request.param, choice)
    assert choice.library is not None, choice.reason
    monkeypatch.setattr(library, "choose", lambda: choice)
    name: str = request.param
    return name
