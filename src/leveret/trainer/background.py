"""Checkpoints written while training goes on: a copy is taken at once, and a thread puts it on the disk.

The step after a save needs the optimizer's buffers, the disk needs them as they were. So they are copied, into buffers
on the host that are made at the first save and used again for each (pinned, when the state lives on an accelerator, so
that the copy is as fast as the bus). Training stands still for the copy alone; hashing, writing and flushing happen
beside it. The price is memory: as much again as a checkpoint takes on the disk, 12 bytes for each trained parameter
with AdamW.

At most one save is under way: the next one waits for it. What a save ran into (a full disk) is raised by `check` at the
next step, or by `wait`. The files are those of a save in the foreground, byte for byte, as the same function writes
them.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import torch
from torch import Tensor

from leveret.trainer.checkpoint import Checkpoints
from leveret.trainer.snapshot import Snapshot


class BackgroundWriter:
    """Writes snapshots, one at a time: beside the training, or at once with `enabled=False`."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._host: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def write(self, checkpoints: Checkpoints, snapshot: Snapshot) -> None:
        """Write now, or begin to once the save before is done. Raises what that one ran into."""
        if not (self.enabled and checkpoints.world.is_main):  # the other processes write nothing, and need no copy
            checkpoints.write(snapshot)
            return
        self.wait()
        copy = replace(snapshot, state=self._copied(snapshot.state))
        self._thread = threading.Thread(target=self._write, args=(checkpoints, copy), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise what a finished save ran into; costs nothing while one is under way."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until nothing is under way; raises what the save ran into."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, checkpoints: Checkpoints, snapshot: Snapshot) -> None:
        try:
            checkpoints.write(snapshot)
        except Exception as error:  # handed to the thread that trains
            self._error = error

    def _copied(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in state.items():
            if name not in self._host or self._host[name].shape != tensor.shape:
                self._host[name] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda"
                )
            self._host[name].copy_(tensor)
        return {name: self._host[name] for name in state}
