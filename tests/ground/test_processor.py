"""The processor, as Linux describes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from leveret import processor


@pytest.fixture
def describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(text: str | None) -> processor.Processor:
        path = tmp_path / "cpuinfo"
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(processor, "CPUINFO", path)
        return processor.processor.__wrapped__()

    return write


def test_name_and_flags_are_read(describe) -> None:
    found = describe(
        "processor\t: 0\nmodel name\t: A (R) CPU @ 2.80GHz\nflags\t\t: fpu avx2 avx_vnni\n\nprocessor\t: 1\n"
    )
    assert found.name == "A (R) CPU @ 2.80GHz"
    assert found.flags == {"fpu", "avx2", "avx_vnni"}


def test_those_of_arm_have_another_name(describe) -> None:
    assert describe("processor\t: 0\nFeatures\t: fp asimd bf16\n").flags == {"fp", "asimd", "bf16"}


def test_elsewhere_there_are_no_flags(describe) -> None:
    found = describe(None)
    assert found.flags == frozenset()
    assert found.name
