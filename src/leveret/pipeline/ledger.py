"""The book of a run: for each stage one JSON file that says begun or done, with what, how long, and what came out.

`stages/<name>.json` is written atomically before a stage begins and after it ends, so a killed run leaves
"begun" behind. The files stand outside the stages' own folders, which a verb may replace as a whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from leveret.paths import atomic_write


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of one stage."""

    stage: str
    command: str
    status: Literal["begun", "done"]
    fingerprint: str
    parts: dict[str, Any]
    """The parts of the fingerprint, to explain a change."""
    output: str | None = None
    seconds: float = 0.0
    """Of the process that finished it; work done before an interruption is not in it."""
    summary: dict[str, Any]
    files: Sequence[str] = ()
    """What was in its output when it was done."""

    def lost(self, output: Path) -> list[str]:
        """Which of these files are there no more."""
        return [name for name in self.files if not (output / name).is_file()]


class Ledger:
    """Reads and writes the records in a run folder."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder
        self._folder = run_folder / "stages"

    def open(self) -> None:
        """Make the folder of the records, and with it the run's: whatever a killed run leaves is told as a run's."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def exists(self) -> bool:
        """Whether a run has been here."""
        return self._folder.is_dir()

    def read(self, stage: str) -> Record | None:
        """The record of a stage; None when there is none, or it was written by another version."""
        try:
            return Record(**json.loads(self._path(stage).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def read_all(self) -> list[Record]:
        """All records, in the order the stages ended."""
        files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return [record for file in files if (record := self.read(file.stem)) is not None]

    def write(self, record: Record) -> None:
        """Put down a record."""
        atomic_write(self._path(record.stage), json.dumps(asdict(record), indent=1, ensure_ascii=False, default=str))

    def set_aside(self, stage: str, output: Path) -> Path | None:
        """Move a stage's old output out of the way; only the last one set aside is kept. None if there was none."""
        aside = None
        if output.exists():
            aside = self.run_folder / "superseded" / stage
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(output, aside)
        self._path(stage).unlink(missing_ok=True)  # last: killed before this, the next run comes here again
        return aside

    def _path(self, stage: str) -> Path:
        return self._folder / f"{stage}.json"
