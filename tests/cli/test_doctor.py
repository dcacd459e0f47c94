"""`leveret doctor` prints what is here and fails when a tiny model disagrees with itself."""

from __future__ import annotations

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


@pytest.mark.parametrize("difference", [1e-2, float("nan")])
def test_a_disagreement_is_an_error(capsys: Capture, monkeypatch: pytest.MonkeyPatch, difference: float) -> None:
    monkeypatch.setattr(doctor, "self_check", lambda: difference)
    assert main(["doctor"]) == 1
    assert "self-check failed" in capsys.readouterr().err
