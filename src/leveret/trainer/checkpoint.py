"""The state of a run on disk: whole or not there, checked by hash, the newest good one wins.

    checkpoints/
      step-00000200/
        state.safetensors    masters, exp_avg, exp_avg_sq (flat fp32, see adamw.py)
        manifest.json        step, updates, layout, identity, and the SHA-256 of every other file
      step-00000400/ ...

A checkpoint is written into a hidden folder, flushed and renamed, so a kill at any moment leaves the older ones
and perhaps a draft that nobody reads. On resume the hashes are checked; a damaged checkpoint is passed over with
a warning, and the one before it is used. Steps are a pure function of the seed and the step number (batches.py,
schedule.py, and the random state, which loop.py sets anew for each step), so a checkpoint need not hold any
random state or data position.

`identity` is everything that decides what is learnt: config, data, tokenizer, starting weights. When it differs,
resuming would mix two runs, so that is refused with the names of what differs.

These files resume *this* run. What others load is written by `leveret.weights`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leveret.console import Console
from leveret.errors import CheckpointError
from leveret.paths import atomic_directory, free_bytes, sha256_file
from leveret.trainer.optimizer import Optimizer

_STATE = "state.safetensors"
_MANIFEST = "manifest.json"


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
    """`AdamW.layout()`."""
    threads: int
    """CPU threads the run used; another number may change the last bits of sums."""
    files: dict[str, str]
    """Name -> SHA-256."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of one checkpoint folder. CheckpointError when it is not there or not readable."""
        try:
            return cls(**json.loads((folder / _MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{folder}: the manifest cannot be read ({error})") from error


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, identity: Mapping[str, Any], keep: int, console: Console) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))  # as it will be read back
        self.keep = keep
        self.console = console

    def saved(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def save(self, step: int, optimizer: Optimizer) -> Path:
        """Write the state after `step` steps, then delete what is older than the last `keep`."""
        target = self.folder / f"step-{step:08d}"
        state = optimizer.state()
        needed = sum(tensor.nbytes for tensor in state.values())
        try:
            with atomic_directory(target) as draft:
                save_file({name: tensor.contiguous() for name, tensor in state.items()}, draft / _STATE)
                manifest = Manifest(
                    step=step,
                    updates=optimizer.updates,
                    identity=self.identity,
                    layout=optimizer.layout(),
                    threads=torch.get_num_threads(),
                    files={_STATE: sha256_file(draft / _STATE)},
                )
                (draft / _MANIFEST).write_text(json.dumps(vars(manifest)), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot save checkpoint {target} ({needed / 1e6:,.0f} MB needed, "
                f"{free_bytes(self.folder) / 1e6:,.0f} MB free): {error}",
                hint="the earlier checkpoints are untouched; free some space and run the same command again",
            ) from error
        self._delete_old()
        return target

    def resume(self, optimizer: Optimizer) -> int:
        """Load the newest good checkpoint into `optimizer`; the number of steps done (0 when there is none).

        CheckpointError when the run's identity has changed, or when checkpoints exist and all are damaged.
        """
        saved, damaged = self.saved(), list[Path]()
        for folder in reversed(saved):
            try:
                manifest, state = self._read(folder)
            except CheckpointError as error:
                self.console.warn(f"{error.message}; trying the one before it")
                damaged.append(folder)
                continue
            self._refuse_other_identity(folder, manifest.identity)
            if manifest.threads != torch.get_num_threads():
                self.console.warn(
                    f"{folder.name} was made with {manifest.threads} CPU threads, this run has "
                    f"{torch.get_num_threads()}: the result may differ in the last bits"
                )
            optimizer.restore(state, updates=manifest.updates, layout=manifest.layout)
            for other in damaged:  # out of the way: it must not count as the newest of those that are kept
                _move(other, other.with_name(f"damaged-{other.name}"))
            return manifest.step
        if saved:
            raise CheckpointError(
                f"{self.folder}: none of the {len(saved)} checkpoints can be read",
                hint=f"to start this run again from step 0, delete the folder: rm -r {self.folder}",
            )
        return 0

    def clear(self, *, keep_newest: bool = False) -> None:
        """Delete them, all or all but the newest: the run is done and its model is saved."""
        if not keep_newest:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for folder in self.saved()[:-1]:
            shutil.rmtree(folder, ignore_errors=True)

    def _read(self, folder: Path) -> tuple[Manifest, dict[str, Tensor]]:
        manifest = Manifest.read(folder)
        for name, expected in manifest.files.items():
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: {name} is missing")
            if sha256_file(folder / name) != expected:
                raise CheckpointError(f"{folder}: {name} is damaged (its SHA-256 is not the manifest's)")
        try:
            return manifest, load_file(folder / _STATE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: {_STATE} cannot be read ({error})") from error

    def _refuse_other_identity(self, folder: Path, saved: dict[str, Any]) -> None:
        if saved == self.identity:
            return
        before, now = flatten(saved), flatten(self.identity)
        changes = [
            f"  {key}: {before.get(key, '(not there)')} -> {now.get(key, '(not there)')}"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]
        raise CheckpointError(
            f"{folder} belongs to a run with other settings:\n" + "\n".join(changes),
            hint="put the settings back to go on with that run, choose another output, "
            f"or give that run up: rm -r {self.folder}",
        )

    def _delete_old(self) -> None:
        for folder in self.saved()[: -self.keep]:
            _move(folder, folder.with_name(f".{folder.name}.deleted"))  # never half a visible checkpoint
        for leftover in self.folder.glob(".step-*.deleted"):
            shutil.rmtree(leftover, ignore_errors=True)


def _move(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; a list is kept whole unless it holds objects."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = list(enumerate(value))
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
