"""What is shown where: results on the standard output, the rest on the error stream, everything in the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from leveret import console as console_module
from leveret.console import Console, duration


def test_results_go_to_the_output_and_messages_to_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.print("result [bold]")
    console.info("message [1/2]")
    console.warn("look out")
    console.error("it broke")
    out, err = capsys.readouterr()
    assert out == "result [bold]\n"
    assert err == "message [1/2]\nwarning: look out\nerror: it broke\n"


def test_a_quiet_console_shows_only_errors_but_logs_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(quiet=True).to_file(tmp_path / "deep/log.txt")
    console.info("message")
    console.warn("look out")
    console.print("result")
    console.table("title", ("name", "number"), [("a", 1234567), (None, 0.00012345)])
    console.rule("stage")
    with console.progress("work", 10, "step") as progress:
        progress.update(10, loss=2.5)
    console.error("it broke")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: it broke\n")
    log = (tmp_path / "deep/log.txt").read_text()
    for expected in ("message", "warning: look out", "result", "title", "1,234,567", "0.0001234", "--- stage ---",
                     "work: 10/10 step", "loss 2.5", "error: it broke"):  # fmt: skip
        assert expected in log


def test_long_lines_are_not_broken_in_pipes(capsys: pytest.CaptureFixture[str]) -> None:
    Console().print("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    with Console().progress("pretrain", 100, "step", start=40) as progress:
        for step in range(41, 51):
            now[0] += 1.0
            progress.update(step, loss=1 / 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pretrain: 45/100 step  1.0 step/s  55.0 s left  loss 0.3333",
        "pretrain: 50/100 step  1.0 step/s  50.0 s left  loss 0.3333",
        "pretrain: 50/100 step  1.0 step/s  50.0 s left  loss 0.3333  took 10.0 s",
    ]


def test_progress_without_a_total_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("read", None, "line") as progress:
        progress.update(12345)
    assert capsys.readouterr().err.startswith("read: 12,345 line")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (8.12, "8.1 s"), (125, "2 min 05 s"), (4320, "1 h 12 min"), (59.99, "60.0 s")]
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text
