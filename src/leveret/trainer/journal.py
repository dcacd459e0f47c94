"""The journal of a run: which steps are skipped and why, decided once and never forgotten.

    checkpoints/journal.jsonl
      {"run": "<fingerprint of the identity>"}
      {"step": 57, "skip": [56, 57], "reason": "spike", "loss": 9.1, "typical": 2.3}

Steps count from 1 here, as in metrics.jsonl. A decision is on the disk before anything follows from it. So whether a
run is killed before, in the middle of or after a roll-back, its weights are those of a run in which the skipped steps
make no update, and nothing else differs: not the rows of other steps, not the learning rates.

A checkpoint says how many decisions it knows of. It is of no use any more when a later decision skips a step that it
has made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.config import fingerprint
from leveret.errors import CheckpointError
from leveret.paths import atomic_write
from leveret.trainer.snapshot import Manifest

NAME = "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Steps that are skipped, counted from 0."""

    step: int
    """Where it was seen that something is wrong."""
    first_skipped: int
    """From here to `step`, none makes an update."""
    reason: str
    """"spike" or "non-finite"."""
    facts: dict[str, Any]
    """What was seen there."""

    def line(self) -> dict[str, Any]:
        """As it stands in the file."""
        skip = list(range(self.first_skipped + 1, self.step + 2))
        return {"step": self.step + 1, "skip": skip, "reason": self.reason, **self.facts}

    @classmethod
    def of(cls, line: dict[str, Any]) -> Decision:
        """From a line of the file."""
        facts = {key: value for key, value in line.items() if key not in ("step", "skip", "reason")}
        return cls(step=line["step"] - 1, first_skipped=line["skip"][0] - 1, reason=line["reason"], facts=facts)


class Journal:
    """The decisions of one run; those of a run with another identity are not read."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, writes: bool = True) -> None:
        self.path = folder / NAME
        self.writes = writes
        self._run = {"run": fingerprint(json.loads(json.dumps(identity)))}
        self.decisions = self._read()

    def __len__(self) -> int:
        return len(self.decisions)

    def reason_to_skip(self, step: int) -> str | None:
        """Why `step` makes no update; None when it does."""
        return next((d.reason for d in self.decisions if d.first_skipped <= step <= d.step), None)

    @property
    def skipped(self) -> set[int]:
        """All steps that make no update."""
        return {step for d in self.decisions for step in range(d.first_skipped, d.step + 1)}

    def accepts(self, manifest: Manifest) -> bool:
        """Whether a checkpoint is of the run as the decisions have it."""
        later = self.decisions[manifest.progress.get("decisions", 0) :]
        return all(manifest.step <= decision.first_skipped for decision in later)

    def add(self, decision: Decision) -> None:
        """Write a decision down; it is on the disk when this returns (several processes decide alike, one writes)."""
        if self.writes:
            self._write(decision)
        self.decisions.append(decision)

    def _write(self, decision: Decision) -> None:
        lines = [self._run, *(known.line() for known in self.decisions), decision.line()]
        try:
            atomic_write(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path}: {error}", hint="free some space and run the same command again"
            ) from error

    def _read(self) -> list[Decision]:
        if not self.path.exists():
            return []
        try:
            first, *lines = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
            return [Decision.of(line) for line in lines] if first == self._run else []
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} is damaged ({error}), so which steps this run skips is not known",
                hint=f"give the run up and begin again: rm -r {os.fspath(self.path.parent)}",
            ) from error
