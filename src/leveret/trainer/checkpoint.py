"""The state of a run on disk: whole or not there, checked by hash, the newest good one wins.

    checkpoints/
      step-00000200/
        state.safetensors    masters, exp_avg, exp_avg_sq (flat fp32, see adamw.py)
        manifest.json        step, updates, layout, identity, progress, the SHA-256 of every other file and its own
      step-00000400/ ...
      journal.jsonl          steps that are skipped, and why (journal.py)
      best/                  the state with the lowest validation loss, in the same form (best.py)

A checkpoint is written into a hidden folder, flushed and renamed, so a kill at any moment leaves the older ones
and perhaps a draft that nobody reads. On resume the hashes are checked; a damaged checkpoint is passed over with
a warning, and the one before it is used. Steps are a pure function of the seed and the step number (batches.py,
schedule.py, and the random state, which loop.py sets anew for each step), so a checkpoint need not hold any
random state or data position; what the loop itself must remember (the last losses, the best validation) is its
`progress`, a few JSON values.

Only what is trained is in the state: of a model whose base is frozen, the rest comes from the base again.

Of several processes only the first writes, deletes and checks hashes; the others read what it chose to resume from. The
tensors are whole, so a run goes on with another number of processes.

`identity` is everything that decides what is learnt: config, data, tokenizer, starting weights. When it differs,
resuming would mix two runs, so that is refused with the names of what differs.

These files resume *this* run. What others load is written by `leveret.weights`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leveret.console import Console
from leveret.errors import CheckpointError
from leveret.paths import atomic_directory, free_bytes, permit_as_new, sha256_file, sweep_drafts
from leveret.trainer.optimizer import Optimizer
from leveret.trainer.snapshot import Damaged, Manifest, Snapshot
from leveret.trainer.world import World

_STATE = "state.safetensors"
_NAME = re.compile(r"step-\d+")
"""A folder of another name, such as a copy that somebody made, is none of ours."""


class Checkpoints:
    """The checkpoints of one run.

    keep: how many; besides them, the newest one that is at least `reach` steps older than the newest is kept.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        keep: int,
        console: Console,
        reach: int = 0,
        world: World | None = None,
    ) -> None:
        self.folder = folder
        self.world = world or World(torch.device("cpu"))
        self.identity = json.loads(json.dumps(identity))  # as it will be read back
        self.keep = keep
        self.reach = reach
        self.console = console

    def saved(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())

    def save(self, step: int, optimizer: Optimizer, progress: Mapping[str, Any] | None = None) -> Path:
        """Write the state after `step` steps, then delete what is older than the last `keep`."""
        return self.write(Snapshot.of(optimizer, step, progress, processes=self.world.size))

    def write(self, snapshot: Snapshot) -> Path:
        """Write a snapshot, then delete what is older than the last `keep`. CheckpointError when it cannot be."""
        target = self.folder_of(snapshot.step)
        if not self.world.is_main:
            return target
        needed = sum(tensor.nbytes for tensor in snapshot.state.values())
        try:
            with atomic_directory(target) as draft:
                save_file({name: tensor.contiguous() for name, tensor in snapshot.state.items()}, draft / _STATE)
                permit_as_new(draft / _STATE)
                fields = {key: value for key, value in vars(snapshot).items() if key != "state"}
                files = {_STATE: sha256_file(draft / _STATE)}
                Manifest(identity=self.identity, files=files, **fields).write(draft)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot save checkpoint {target} ({needed / 1e6:,.0f} MB needed, "
                f"{free_bytes(self.folder) / 1e6:,.0f} MB free): {error}",
                hint="the earlier checkpoints are untouched; free some space and run the same command again",
            ) from error
        self._delete_old()
        return target

    def folder_of(self, step: int) -> Path:
        """Where the checkpoint after `step` steps is, or would be."""
        return self.folder / f"step-{step:08d}"

    def resume(self, optimizer: Optimizer, *, accept: Callable[[Manifest], bool] = lambda _: True) -> Manifest | None:
        """Load the newest good checkpoint into `optimizer`; its manifest, or None when there is none.

        accept: which checkpoints are still of this run; newer ones that are not are deleted. CheckpointError when the
        run's identity has changed, or when checkpoints exist and none can be used.
        """
        found = self._choose(optimizer, accept) if self.world.is_main else None
        step = self.world.agree(None if found is None else found.step)
        if step is not None and not self.world.is_main:
            folder = self.folder_of(step)
            found = Manifest.read(folder)
            optimizer.restore(self._read(folder, found, check=False), updates=found.updates, layout=found.layout)
        self.world.sum(0.0)  # nothing is deleted before all have read
        return found

    def _choose(self, optimizer: Optimizer, accept: Callable[[Manifest], bool]) -> Manifest | None:
        """What `resume` does in the first process."""
        sweep_drafts(self.folder)
        saved, damaged, abandoned = self.saved(), list[Path](), list[Path]()
        for folder in reversed(saved):
            try:
                manifest = Manifest.read(folder)
                self._refuse_other_identity(folder, manifest.identity)
                if not accept(manifest):
                    abandoned.append(folder)
                    continue
                state = self._read(folder, manifest)
            except Damaged as error:
                self.console.warn(f"{error.message}; trying the one before it")
                damaged.append(folder)
                continue
            self._warn_of_other_bits(folder, manifest)
            optimizer.restore(state, updates=manifest.updates, layout=manifest.layout)
            for other in damaged:  # out of the way: it must not count as the newest of those that are kept
                _move(other, other.with_name(f"damaged-{other.name}"))
            for other in abandoned:
                _delete(other)
            return manifest
        if saved:
            raise CheckpointError(
                f"{self.folder}: none of the {len(saved)} checkpoints can be used",
                hint=f"to start this run again from step 0, delete the folder: rm -r {self.folder}",
            )
        return None

    def damage(self, step: int) -> Damaged | None:
        """What is wrong with the checkpoint after `step` steps; None when it is whole."""
        folder = self.folder_of(step)
        try:
            _check(folder, Manifest.read(folder))
        except Damaged as error:
            return error
        return None

    def oldest_step(self) -> int | None:
        """The step of the oldest one there is."""
        return self.world.agree(next((_step_of(folder) for folder in self.saved()), None))

    def delete_after(self, step: int) -> None:
        """Delete those of more than `step` steps: the run goes on from there."""
        for folder in self.saved() if self.world.is_main else ():
            if _step_of(folder) > step:
                _delete(folder)

    def clear(self, *, keep_newest: bool = False, keep_best: bool = False) -> None:
        """Delete them, all or all but the newest or the best: the run is done and its model is saved.

        Of those in best/ the newest is the best one; others are there for a roll-back.
        """
        kept = {folder.name for folder in self.saved()[-1:] if keep_newest} | ({"best"} if keep_best else set())
        if not kept:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for folder in self.folder.iterdir():
            if folder.is_dir() and folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in sorted(self.folder.glob("best/step-*"))[:-1]:
            shutil.rmtree(folder, ignore_errors=True)

    def _read(self, folder: Path, manifest: Manifest, *, check: bool = True) -> dict[str, Tensor]:
        if check:
            _check(folder, manifest)
        try:
            return load_file(folder / _STATE)
        except (OSError, SafetensorError) as error:
            raise Damaged(f"{folder}: {_STATE} cannot be read ({error})") from error

    def _warn_of_other_bits(self, folder: Path, manifest: Manifest) -> None:
        for what, then, now in (
            ("CPU threads", manifest.threads, torch.get_num_threads()),
            ("processes", manifest.processes, self.world.size),
        ):
            if then != now:
                self.console.warn(
                    f"{folder.name} was made with {then} {what}, this run has {now}: "
                    "the result may differ in the last bits"
                )

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
        saved = self.saved()
        newest = _step_of(saved[-1])
        far = [folder for folder in saved if _step_of(folder) <= max(newest - self.reach, 0)][-1:]
        for folder in saved[: -self.keep]:
            if folder not in far:
                _delete(folder)
        for leftover in self.folder.glob(".step-*.deleted"):
            shutil.rmtree(leftover, ignore_errors=True)


def _check(folder: Path, manifest: Manifest) -> None:
    """Damaged when a file of a checkpoint is not the one that was written."""
    for name, expected in manifest.files.items():
        if not (folder / name).is_file():
            raise Damaged(f"{folder}: {name} is missing")
        if sha256_file(folder / name) != expected:
            raise Damaged(f"{folder}: {name} is damaged (its SHA-256 is not the manifest's)")


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _delete(folder: Path) -> None:
    """Never half a visible checkpoint."""
    aside = folder.with_name(f".{folder.name}.deleted")
    _move(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


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
