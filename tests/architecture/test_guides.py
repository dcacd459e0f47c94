"""The commands shown in README and guide work: lines that begin with `$ ` in ```console fences are run, page by page.

A fence tagged ```console skip is not run (it trains for long, needs a network or a terminal). A command that is meant
to fail says so: `$ leveret validate wrong.yaml  # exits with 2`. See guide_folder.py for the folder they run in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .guide_folder import build
from .source import ROOT

PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs/guide").glob("*.md")])
SECONDS_PER_COMMAND = 120


def commands(page: Path) -> list[tuple[str, int]]:
    """(command, expected exit code) of every runnable line of a page; a backslash continues a line."""
    found = []
    for fence in re.finditer(r"^```console[ \t]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.M):
        for line in re.findall(r"^\$ ((?:.*\\\n)*.*)$", fence[1], re.M):
            code = re.search(r"# exits with (\d+)\s*$", line)
            found.append((line, int(code[1]) if code else 0))
    return found


@pytest.fixture(scope="session")
def pattern_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guide") / "pattern"
    folder.mkdir()
    build(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_the_commands_of_a_page_work(page: Path, pattern_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(pattern_folder, folder)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LEVERET_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    for command, code in commands(page):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=SECONDS_PER_COMMAND,
        )
        assert done.returncode == code, f"$ {command}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, f"$ {command}\n{done.stderr}"


def test_fences_are_read_as_this_file_says(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ a \\\n  b\noutput\n$ c  # exits with 2\n```\n```console skip\n$ d\n```\n```bash\n$ e\n```\n"
    )
    assert commands(page) == [("a \\\n  b", 0), ("c  # exits with 2", 2)]


def test_every_console_fence_is_run_or_marked() -> None:
    for page in PAGES:
        for tag in re.findall(r"^```(console.*)$", page.read_text(encoding="utf-8"), re.M):
            assert tag.strip() in ("console", "console skip"), f"{page.name}: ```{tag}"
