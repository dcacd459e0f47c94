"""Two small commands, `write` and `join`, that a recipe can use as stages; each call leaves a line in calls.log."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from leveret.commands import COMMANDS, Command
from leveret.console import Console

VERBS = """
import os, time
from pathlib import Path
from typing import Annotated
from pydantic import Field
from leveret.commands import StageResult
from leveret.config import Config, Rehearsal
from leveret.errors import DataError

class Nested(Config):
    steps: Annotated[int, Rehearsal(2)] = Field(default=100, gt=0)
    seed: int = 0

class WriteConfig(Config):
    output: Path
    text: str
    source: Path | None = None
    training: Nested = Nested()
    then: str = "end"
    model: str | None = None

class JoinConfig(Config):
    output: Path
    parts: list[Path]
    seed: int

class AskConfig(Config):
    question: str

def note(config, name):
    with open("calls.log", "a") as file:
        file.write(f"{name} {os.getpid()}\\n")

def write(config, console):
    note(config, "write")
    config.output.mkdir(parents=True, exist_ok=True)
    begun = config.output / "begun"
    console.info(f"writing {config.text}")
    if config.then == "hang once" and not begun.exists():
        begun.write_text(str(os.getpid()))
        time.sleep(60)
    if config.then == "fail":
        raise DataError("no such word", path="words.txt", line=3, hint="write it down")
    if config.then == "crash":
        os.abort()
    if config.then == "bug":
        raise ZeroDivisionError("ours")
    content = config.source.read_text() if config.source else ""
    (config.output / "text.txt").write_text(f"{content}{config.text} {config.training.steps} {config.training.seed}")
    return StageResult(output=config.output, summary={"words": 1})

def join(config, console):
    note(config, "join")
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "joined.txt").write_text("|".join(part.read_text() for part in config.parts))
    return StageResult(output=config.output)

def ask(config, console):
    note(config, "ask")
    console.print(config.question)
    return StageResult(output=None)
"""

RECIPE = """
name: tale
seed: 7
stages:
  - write: {text: one}
  - name: second
    write: {text: two, training: {steps: 5}}
  - join: {parts: ["@write/text.txt", "@second/text.txt"]}
"""


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty but for tale.yaml, with the two commands installed."""
    modules = tmp_path / "modules"
    modules.mkdir()
    module = f"fake_verbs_{abs(hash(tmp_path))}"
    (modules / f"{module}.py").write_text(textwrap.dedent(VERBS))
    monkeypatch.syspath_prepend(modules)
    for name in ("write", "join", "ask"):
        command = Command(name=name, help=name, config=f"{module}:{name.title()}Config", run=f"{module}:{name}")
        monkeypatch.setitem(COMMANDS, name, command)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "tale.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture
def calls(workshop: Path) -> Callable[[], list[str]]:
    """The commands called so far, in order."""

    def read() -> list[str]:
        log = workshop / "calls.log"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []

    return read
