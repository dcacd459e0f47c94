"""`leveret show`: files of pages, and a server on this machine that stops on interrupt."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from leveret.cli.show import run
from leveret.cli.show_config import ShowConfig
from leveret.console import Console
from leveret.errors import ConfigError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 3, "loss": 2.5}) + "\n")
    return tmp_path / "runs"


def test_each_run_becomes_a_file_that_needs_nothing_else(runs: Path, tmp_path: Path) -> None:
    result = run(ShowConfig(runs=runs, output=tmp_path / "pages", language="zh"), Console())
    pages = sorted((tmp_path / "pages").iterdir())
    assert [page.name for page in pages] == ["first.html", "second.html"] and result.summary == {"runs": 2}
    text = pages[0].read_text(encoding="utf-8")
    assert "损失" in text and "http" not in text and "href" not in text and "<script" not in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        run(ShowConfig(runs=tmp_path / "nowhere", output=tmp_path), Console())


@pytest.mark.slow
def test_the_server_shows_the_list_and_stops_on_interrupt(runs: Path) -> None:
    command = [sys.executable, "-c", "from leveret.cli.main import main; raise SystemExit(main())", "show"]
    process = subprocess.Popen([*command, str(runs), "port=0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        address = process.stderr.readline().split()[1]
        with urllib.request.urlopen(address) as answer:
            page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
        assert "first" in page and "second" in page and policy.startswith("default-src 'none'")
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0 and "stopped" in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
