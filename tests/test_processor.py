"""The processor, as Linux describes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from leveret import processor
from leveret.kernels.native import library


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
    described = processor.Processor(name="x", flags=frozenset(flags))
    monkeypatch.setattr(library, "processor", lambda: described)
    runnable = library.runnable()
    assert runnable[0] == best
    assert runnable[-1] == "plain"
