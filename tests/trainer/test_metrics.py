"""The record of a run: durable, truncated on resume, and a page that needs nothing but itself."""

import json
import re
from html.parser import HTMLParser

import pytest

from leveret.errors import TrainingError
from leveret.trainer.metrics import Metrics, read_metrics
from leveret.trainer.metrics_page import _powers, render_page


def record(folder, steps, *, steps_done=0):
    metrics = Metrics(folder, title="pretrain", total_steps=10, steps_done=steps_done)
    for step in steps:
        metrics.write(step, loss=5.0 / step, learning_rate=1e-3, gradient_norm=1.0, tokens_per_second=1000.0)
    return metrics


def test_every_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    metrics = record(tmp_path, [1, 2, 3])
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    metrics.close(status="done")


def test_lines_after_the_resumed_step_are_dropped_and_a_cut_line_too(tmp_path):
    record(tmp_path, range(1, 9)).close(status="failed")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    record(tmp_path, [6, 7], steps_done=5).close(status="done")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("broken", [b"\xff\xfe\x00", b'{"loss": 1.0}', b"[]", b'{"step": null}', b"\x00" * 40])
def test_what_is_no_line_ends_the_record(tmp_path, broken):
    record(tmp_path, [1, 2]).close(status="failed")
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(broken + b'\n{"step": 3}\n')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    record(tmp_path, [3], steps_done=2).close(status="done")
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_the_page_reloads_while_running_and_stops_when_done(tmp_path):
    metrics = record(tmp_path, [1, 2])
    assert "http-equiv" in (tmp_path / "metrics.html").read_text()
    metrics.close(status="done")
    page = (tmp_path / "metrics.html").read_text()
    assert "http-equiv" not in page and "done: step 2 of 10" in page


def test_the_page_is_self_contained_well_formed_and_has_both_themes(tmp_path):
    lines = [{"step": s, "loss": 9 / s, "validation_loss": 10 / s, "learning_rate": 1e-3} for s in range(1, 2000)]
    page = render_page("<run>", lines, total_steps=2000, status="running")
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page and "&lt;run&gt;" in page
    assert page.count("<polyline") == 3
    assert max(polyline.count(",") for polyline in re.findall(r'points="([^"]*)"', page)) <= 400
    HTMLParser().feed(page)


@pytest.mark.parametrize("values", [[], [2.0], [2.0, 2.0], [float("nan"), 1.0], [0.0, 0.0]])
def test_degenerate_curves_are_drawn_without_fault(values):
    lines = [{"step": step, "loss": value} for step, value in enumerate(values, 1)]
    page = render_page("run", lines, total_steps=10, status="running")
    assert "nan" not in re.sub(r"<table.*</table>", "", page).lower().replace("nance", "")


def test_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    metrics = record(tmp_path, [1])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TrainingError, match=r"metrics.jsonl.*No space left"):
        metrics.write(2, loss=1.0)
    monkeypatch.undo()
    metrics.close(status="failed")


def heights(values):
    """The y of each point of the loss curve."""
    lines = [{"step": step, "loss": value} for step, value in enumerate(values, 1)]
    page = render_page("run", lines, total_steps=len(values), status="done")
    points = re.search(r'<polyline class="a" points="([^"]*)"', page).group(1).split()
    return [float(point.split(",")[1]) for point in points]


def test_equal_factors_of_the_loss_are_equally_far_apart():
    first, second, third, fourth = heights([8.0, 0.8, 0.08, 0.04])
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert (fourth - third) / (second - first) == pytest.approx(0.301, abs=0.01)


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (0.05, 8.0), (2.0, 2.0), (1e-9, 1e6), (1.0, 10.0)])
def test_the_marks_of_a_logarithmic_axis_span_the_curve(low, high):
    marks = _powers(low, high)
    assert marks == sorted(set(marks)) and 2 <= len(marks) <= 17
    assert marks[0] <= low and marks[-1] >= high


def test_a_loss_of_zero_falls_back_to_an_even_axis():
    first, second, third = heights([2.0, 1.0, 0.0])
    assert second - first == pytest.approx(third - second, abs=0.2)
