"""A command `toy` whose config has a key of every sort; running it prints its config."""

from __future__ import annotations

from pathlib import Path

import pytest

from leveret.commands import COMMANDS, Command

TOY = '''
from pathlib import Path
from typing import Annotated, Literal
from pydantic import Field
from leveret.commands import StageResult
from leveret.config import Config, Positional
from leveret.errors import CertificateError

class Training(Config):
    """How it is trained."""
    max_steps: Annotated[int, Field(gt=0, le=1000)] = 10
    """Optimizer steps."""
    warmup: int | None = None
    packed: bool = True

class Source(Config):
    path: Path

class ToyConfig(Config):
    """Plays with every sort of key."""
    model: Annotated[str, Positional(0)]
    """The model to play with."""
    prompts: Annotated[tuple[str, ...], Positional(1)] = ()
    """What to say."""
    output: Path | None = None
    size: Literal["small", "large"] = "small"
    fast: bool = False
    """Whether to hurry."""
    rates: list[float] = []
    sources: list[Source] = []
    training: Training = Training()
    """The training."""

def toy(config, console):
    if config.model == "bug":
        raise ZeroDivisionError("ours")
    if config.model == "interrupt":
        raise KeyboardInterrupt
    if config.model == "uncertain":
        raise CertificateError("logits differ by 0.3", hint="look at layer 2")
    console.print(config.model_dump_json())
    return StageResult(output=config.output, summary={"steps": config.training.max_steps})
'''


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    name = f"toy_{abs(hash(tmp_path))}"
    (modules / f"{name}.py").write_text(TOY)
    monkeypatch.syspath_prepend(modules)
    command = Command(name="toy", help="Play.", config=f"{name}:ToyConfig", run=f"{name}:toy")
    monkeypatch.setitem(COMMANDS, "toy", command)
    monkeypatch.chdir(tmp_path)
