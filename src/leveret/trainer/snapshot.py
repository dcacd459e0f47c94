"""What a checkpoint holds of a run (a Snapshot), and what its folder says of that (a Manifest)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leveret.errors import CheckpointError
from leveret.trainer.optimizer import Optimizer

MANIFEST = "manifest.json"
_SEAL = "sha256"
"""Where the file has the hash of all else that it says: a flipped digit is still JSON."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says."""

    step: int
    """Steps done: the run goes on with the step of this number, counted from 0."""
    updates: int
    """Updates the optimizer has made (its bias correction depends on it)."""
    identity: dict[str, Any]
    """What decides what is learnt; JSON values."""
    layout: dict[str, list[int]]
    """`Optimizer.layout()`: name -> [start, *shape] in the flat tensors."""
    threads: int
    """CPU threads the run used; another number may change the last bits of sums."""
    files: dict[str, str]
    """Name -> SHA-256."""
    processes: int = 1
    """Processes that made it; another number may change the last bits of sums."""
    progress: dict[str, Any] = field(default_factory=dict)
    """What the loop remembers from step to step; JSON values."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of one checkpoint folder. Damaged when it is not there or not readable."""
        try:
            fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            seal = fields.pop(_SEAL, None)  # that of an earlier version has none
            manifest = cls(**fields)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise Damaged(f"{folder}: the manifest cannot be read ({error})") from error
        if seal not in (None, _seal(fields)):
            raise Damaged(f"{folder}: the manifest is damaged (its SHA-256 is another)")
        return manifest

    def write(self, folder: Path) -> None:
        """Put it into a checkpoint's folder, with the hash of what it says."""
        fields = json.loads(json.dumps(vars(self)))  # as they will be read: keys that are numbers become texts
        (folder / MANIFEST).write_text(json.dumps({**fields, _SEAL: _seal(fields)}), encoding="utf-8")


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything a checkpoint holds, at one moment of a run."""

    step: int
    updates: int
    layout: dict[str, list[int]]
    threads: int
    processes: int
    progress: dict[str, Any]
    state: dict[str, Tensor]
    """Empty where another process writes."""

    @classmethod
    def of(
        cls, optimizer: Optimizer, step: int, progress: Mapping[str, Any] | None = None, *, processes: int = 1
    ) -> Snapshot:
        """The optimizer as it is now, after `step` steps. Its tensors are not copied. All processes must ask for it."""
        return cls(
            step=step,
            updates=optimizer.updates,
            layout=optimizer.layout(),
            threads=torch.get_num_threads(),
            processes=processes,
            progress=json.loads(json.dumps(progress or {})),
            state=optimizer.state(),
        )


class Damaged(CheckpointError):
    """A checkpoint is not what was written; the one before it may be good."""
