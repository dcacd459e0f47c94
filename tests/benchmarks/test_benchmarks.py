"""The benchmark scripts run, check that both sides did the same work, and say so when they did not."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ALONE = ("certify_cpu", "prefix_cpu", "speculation_cpu")
"""Scripts that compare with no other program."""
SCRIPTS = sorted(script for script in BENCHMARKS.glob("*_cpu.py") if script.stem not in ALONE)
PEERS = {
    "adapters_cpu": "peft",
    "merge_cpu": "mergekit",
    "products_cpu": "torch",
    "sft_cpu": "trl",
    "engine_cpu": "llama_cpp",
    "serve_cpu": "llama_cpp",
    "quantize_cpu": "gptqmodel",
}
"""Of scripts whose peer is not transformers."""


def quick_figures(script: Path, folder: Path, *words: str) -> dict[str, Any]:
    """What a script writes when it is only to show that it works."""
    file = folder / "figures.json"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(file), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return figures


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs_and_both_sides_do_the_same(script: Path, tmp_path: Path) -> None:
    peer = PEERS.get(script.stem, "transformers")
    pytest.importorskip(peer, reason="the peer of this benchmark")
    if script.stem == "serve_cpu":
        pytest.importorskip("sse_starlette", reason="needed by the peer's server")
    figures = quick_figures(script, tmp_path)
    assert figures["works"] and figures["checks"]
    assert set(figures["checks"].values()) == {"yes"}
    for work in figures["works"].values():
        assert set(work["sides"]) == {"leveret", peer}
        low, high = work["ratio_range"]
        assert 0 < low <= work["ratio"] <= high
    assert min(figures["peak_memory_bytes"].values()) > 0
    assert figures["machine"]["llama_cpp_python" if peer == "llama_cpp" else peer]


@pytest.mark.slow
def test_merges_are_compared_as_commands_too(tmp_path: Path) -> None:
    pytest.importorskip("mergekit", reason="the peer of this benchmark")
    figures = quick_figures(BENCHMARKS / "merge_cpu.py", tmp_path, "--commands", "--methods", "linear")
    assert set(figures["checks"].values()) == {"yes"}
    assert list(figures["works"]) == ["linear"]
    # That of the commands: the processes that start them hold less.
    assert min(figures["peak_memory_bytes"].values()) > 150 * 2**20


@pytest.mark.slow
def test_certifying_six_forms_gives_each_its_verdict(tmp_path: Path) -> None:
    for package in ("transformers", "llama_cpp"):
        pytest.importorskip(package, reason="it reads one of the forms")
    figures = quick_figures(BENCHMARKS / "certify_cpu.py", tmp_path)
    assert set(figures["checks"].values()) == {"yes"} and len(figures["seconds_by_form"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize(("script", "sides"), [("fp8_loss", 6), ("pretrain_gpu", 4), ("loss_curve", 3)])
def test_a_script_about_losses_trains_all_its_sides(script: str, sides: int, tmp_path: Path) -> None:
    figures = quick_figures(BENCHMARKS / f"{script}.py", tmp_path)
    runs = figures["runs"] if script == "fp8_loss" else {side: [run] for side, run in figures["sides"].items()}
    assert len(runs) == sides
    first, *others = (tuple(run["losses"]) for (run,) in runs.values())
    assert all(each != first for each in others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "sides"), [("prefix_cpu", {"reuse", "plain"}), ("speculation_cpu", {"lookup", "plain"})]
)
def test_a_script_compares_the_engine_with_itself(script: str, sides: set[str], tmp_path: Path) -> None:
    figures = quick_figures(BENCHMARKS / f"{script}.py", tmp_path)
    assert set(figures["checks"].values()) == {"yes"}
    assert all(set(work["sides"]) == sides for work in figures["works"].values())
    if script == "prefix_cpu":
        assert all(read["plain"] > 3 * read["reuse"] for read in figures["settings"]["tokens_read"].values())
    else:
        assert figures["settings"]["counts"]["quotes"]["accepted"] > 0


class FakeSide:
    """Answers at once, and remembers when it was asked."""

    def __init__(self, name: str, seconds: list[float], result: object, calls: list[str]) -> None:
        self.name, self.result, self.peak_bytes = name, result, 1
        self._seconds, self._calls = iter(seconds), calls

    def do(self, work: str) -> tuple[float, object]:
        self._calls.append(self.name)
        return next(self._seconds), self.result


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("side_by_side")
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    return module


def compared(ours: object, theirs: object) -> str | None:
    return None if ours == theirs else "no"


def test_what_is_prepared_is_not_on_the_clock(side_by_side: ModuleType) -> None:
    def make(seconds: float) -> dict[str, Any]:
        done: list[str] = []
        prepare = lambda: (time.sleep(seconds), done.append("prepared"))  # noqa: E731
        return {"work": side_by_side.Staged(prepare, lambda: len(done))}

    received: list[Any] = []

    class Connection:
        def __init__(self) -> None:
            self.asked = ["work"]

        def recv(self) -> str:
            if not self.asked:
                raise EOFError
            return self.asked.pop()

        def send(self, answer: Any) -> None:
            received.append(answer)

    side_by_side._answer(Connection(), make, 0.2)
    ((seconds, result, _),) = received
    assert result == 1 and seconds < 0.1


def timed(
    module: ModuleType, results: tuple[object, object], calls: list[str]
) -> tuple[Any, str | None, list[FakeSide]]:
    sides = [
        FakeSide("leveret", [99.0, 1.0, 2.0, 4.0], results[0], calls),
        FakeSide("peer", [99.0, 4.0, 6.0, 4.0], results[1], calls),
    ]
    timing, difference = module.alternate(sides, "work", amount=12, unit="token", rounds=3, same=compared)
    return timing, difference, sides


def test_sides_take_turns_and_the_first_round_does_not_count(side_by_side: ModuleType) -> None:
    calls: list[str] = []
    timing, difference, _ = timed(side_by_side, (1, 1), calls)
    pairs = [tuple(calls[at : at + 2]) for at in range(0, len(calls), 2)]
    assert pairs == [("leveret", "peer"), ("peer", "leveret")] * 2
    assert difference is None
    assert timing.seconds == {"leveret": [1.0, 2.0, 4.0], "peer": [4.0, 6.0, 4.0]}
    assert timing.ratio == 2.0  # medians 4 and 2
    assert timing.ratios == [4.0, 3.0, 1.0]


def test_sides_that_do_different_work_end_with_an_error(side_by_side: ModuleType, tmp_path: Path) -> None:
    timing, difference, sides = timed(side_by_side, (1, 2), [])
    assert difference == "no"
    told = {"settings": {}, "packages": [], "file": tmp_path / "figures.json"}
    assert side_by_side.report("title", [timing], sides, {"same": difference}, **told) == 1
    assert json.loads((tmp_path / "figures.json").read_text())["checks"] == {"same": "no"}
    assert side_by_side.report("title", [timing], sides, {"same": None}, **told) == 0
