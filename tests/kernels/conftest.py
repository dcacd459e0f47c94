"""Every compiled build that this processor can run, one after another."""

from __future__ import annotations

import pytest

from leveret.kernels.native import library
from leveret.kernels.native.build import instruction_sets, library_path


@pytest.fixture(params=sorted(instruction_sets()))
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a build, which is the one that runs during the test."""
    name: str = request.param
    if library._RANK[name] > library.capability():
        pytest.skip(f"this processor cannot run {name}")
    if not library_path(name).is_file():
        pytest.skip(f"{name} was not compiled: there was no C++ compiler at installation")
    choice = library.load(name)
    assert choice.library is not None, choice.reason
    monkeypatch.setattr(library, "choose", lambda: choice)
    return name
