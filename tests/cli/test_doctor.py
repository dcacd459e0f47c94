"""`leveret doctor` prints what is here and fails when a tiny model disagrees with itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from leveret.cli import doctor
from leveret.cli.main import main

Capture = pytest.CaptureFixture[str]


def test_the_table_names_what_matters(capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for expected in ("Python 3.", "torch 2.", "processor", "memory", "disk", "extra dev", "extra serve",
                     "self-check passed: a tiny model with and without its cache agrees"):  # fmt: skip
        assert expected in page, page


def test_a_missing_extra_is_shown_with_its_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_is_installed", lambda package: package != "fastapi")
    rows = dict(doctor._extras())
    assert rows["extra serve"] == 'pip install "leveret[serve]" (fastapi)'
    assert rows["extra dev"] == "installed"


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_a_broken_installation_is_told_with_the_rest_of_the_table(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "_is_installed", lambda package: package not in (name, "leveret"))
    assert main(["doctor"]) == 1
    out, error = capsys.readouterr()
    page = " ".join(out.replace("│", " ").split())
    assert "torch cannot be told" in page and "processor" in page and "extras cannot be told" in page
    assert (name == "numpy") == ("numpy missing: pip install numpy" in page)
    assert "error: the self-check cannot run" in error and "--force-reinstall torch" in error


def test_a_card_that_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr(doctor, "DEVICES", tmp_path)
    assert dict(doctor._installation())["accelerator"] == "none; everything runs on CPU"
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    said = dict(doctor._installation())["accelerator"]
    assert said == "none that torch can use, of 2 NVIDIA here; this torch is built for CPUs only"


@pytest.mark.parametrize("difference", [1e-2, float("nan")])
def test_a_disagreement_is_an_error(capsys: Capture, monkeypatch: pytest.MonkeyPatch, difference: float) -> None:
    monkeypatch.setattr(doctor, "self_check", lambda: difference)
    assert main(["doctor"]) == 1
    assert "self-check failed" in capsys.readouterr().err
