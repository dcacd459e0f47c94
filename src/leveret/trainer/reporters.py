"""Other programs that draw curves, by name: each gets the lines of metrics.jsonl as they are written.

All of them are optional packages. A resumed run goes on in the same curve where the program can do that: its name and
number come from the run itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from leveret.config import fingerprint
from leveret.extras import require

PROJECT = "leveret"


class Reporter(Protocol):
    """What a program needs to be told."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers after `step` steps."""

    def close(self) -> None:
        """The run is over."""


class TensorBoard:
    """Event files in `folder`/tensorboard, for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        require("tensorboard", extra=None, purpose="report_to: tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar for each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and end."""
        self._writer.close()


class Tracker:
    """wandb and the programs that copy its three functions: init, log, finish."""

    def __init__(self, program: str, *, title: str, identity: Mapping[str, Any], folder: Path) -> None:
        self._module: ModuleType = require(program, extra=None, purpose=f"report_to: {program}")
        settings: dict[str, Any] = {"project": PROJECT, "config": dict(identity)}
        name = f"{title}-{folder.name}"
        if program == "swanlab":
            settings |= {"experiment_name": name, "logdir": str(folder / "swanlab")}
        else:
            settings |= {"name": name, "resume": "allow"}
        if program == "wandb":
            settings |= {"id": fingerprint([dict(identity), str(folder)])[:16], "dir": str(folder)}
        self._module.init(**settings)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One log entry."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """End the run there too."""
        self._module.finish()


def open_reporters(names: Sequence[str], folder: Path, *, title: str, identity: Mapping[str, Any]) -> list[Reporter]:
    """The programs of `report_to`. MissingExtra when one is not installed."""
    return [
        TensorBoard(folder) if name == "tensorboard" else Tracker(name, title=title, identity=identity, folder=folder)
        for name in names
    ]
