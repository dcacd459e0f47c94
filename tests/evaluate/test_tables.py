"""The tables of an evaluation, on a screen of ordinary size."""

from __future__ import annotations

import pytest

from leveret.console import Console
from leveret.evaluate.tables import show_failures


def test_a_long_request_does_not_fill_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    call = {"name": "send", "arguments": {"text": "word " * 4000}}
    failure = {"error": "wrong_tool", "query": "hello " * 4000, "expected": [call], "predicted": None}
    show_failures([failure], 10, Console())
    shown = capsys.readouterr().out
    assert "hello hello" in shown and "..." in shown and len(shown) < 8000
