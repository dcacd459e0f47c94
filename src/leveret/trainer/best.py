"""The best validation so far: its checkpoint, and when to stop waiting for a better one.

With `publish: best` or `keep_best`, the state with the lowest validation loss is saved apart, in checkpoints/best, each
time there is a lower one. With `early_stop_patience`, the run ends after so many validations in a row that were not
lower than the best by more than `early_stop_min_delta`. What is remembered is part of every checkpoint, so a resumed
run stops where the uninterrupted one does. A best state that is found damaged then is made again, from a checkpoint
before it if there still is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from leveret.errors import CheckpointError, ConfigError
from leveret.trainer.background import BackgroundWriter
from leveret.trainer.checkpoint import Checkpoints
from leveret.trainer.config import TrainingConfig
from leveret.trainer.optimizer import Optimizer
from leveret.trainer.snapshot import Manifest, Snapshot

FOLDER = "best"
LOSS = "validation_loss"


class Best:
    """Follows the validation losses of a run."""

    def __init__(self, config: TrainingConfig, checkpoints: Checkpoints, *, validates: bool) -> None:
        self.config = config
        self.saves = config.keep_best or config.publish == "best"
        if not validates and (self.saves or config.early_stop_patience is not None):
            raise ConfigError(
                "keep_best, publish: best and early_stop_patience go by validation, but there is no `validation`",
                hint="name some held-out data under `validation`",
            )
        if not validates and config.evaluate_every_steps is not None:
            checkpoints.console.warn(
                f"training.evaluate_every_steps is {config.evaluate_every_steps}, but there is no `validation`, so "
                "nothing is measured"
            )
        # A roll-back may undo the newest ones; the one before must then still be there.
        undone = (
            math.ceil(config.spike_skip_steps / (config.evaluate_every_steps or math.inf)) if config.rolls_back else 0
        )
        self.checkpoints = Checkpoints(
            checkpoints.folder / FOLDER, identity=checkpoints.identity, keep=1 + undone, console=checkpoints.console,
            world=checkpoints.world,
        )  # fmt: skip
        self._of_run = checkpoints
        self._lost: int | None = None  # the step of a damaged best state that is to be made again
        self.step: int | None = None
        """After how many steps the loss was lowest."""
        self.values: dict[str, float] = {}
        """What was measured then."""
        self._is_kept = self.saves  # whether the state of then was saved
        self._waited = 0
        self._bar = math.inf  # what a loss must fall below by min_delta, for patience

    @property
    def loss(self) -> float:
        """The lowest validation loss."""
        return self.values.get(LOSS, math.inf)

    def see(self, values: Mapping[str, float], step: int) -> bool:
        """Note what was measured after `step` steps; whether the loss is the lowest so far."""
        loss = values.get(LOSS, math.inf)
        if loss < self._bar - self.config.early_stop_min_delta:
            self._bar, self._waited = loss, 0
        else:
            self._waited += 1
        if not loss < self.loss:
            return False
        self.values, self.step, self._is_kept = dict(values), step, self.saves
        return True

    @property
    def is_given_up(self) -> bool:
        """Whether so many validations in a row brought nothing that the run should end."""
        patience = self.config.early_stop_patience
        return patience is not None and self._waited >= patience

    def save(self, writer: BackgroundWriter, snapshot: Snapshot) -> None:
        """Keep this state as the best one."""
        writer.write(self.checkpoints, snapshot)

    def load(self, optimizer: Optimizer) -> int:
        """Put the best state into `optimizer` and its model; after how many steps it was."""
        assert self.step is not None
        if self.checkpoints.world.is_main and (damage := self.checkpoints.damage(self.step)) is not None:
            hint = f"to start this run again from step 0, delete the folder: rm -r {self._of_run.folder}"
            if self._has_checkpoint_before(self.step):
                hint = "run the same command again: it goes on from a checkpoint before it, and makes it again"
            raise CheckpointError(f"{damage.message}, and the weights to publish are in it", hint=hint)
        manifest = self.checkpoints.resume(optimizer, accept=lambda found: found.step == self.step)
        assert manifest is not None
        return manifest.step

    def accepts(self, manifest: Manifest) -> bool:
        """Whether to go on from a checkpoint, the newest being asked about first.

        Not when the best state it tells of is damaged and there is a checkpoint from before that state.
        """
        if self._lost is None:
            self._lost = self._damaged(manifest.progress.get("best", {}))
        return self._lost is None or manifest.step < self._lost

    def _damaged(self, known: Mapping[str, Any]) -> int | None:
        """The step of the best state that a checkpoint knows, when it is damaged and can be made again."""
        step = known.get("step")
        if not self.saves or step is None or not known.get("kept", True) or not self._has_checkpoint_before(step):
            return None
        if self.checkpoints.saved()[-1:] > [self.checkpoints.folder_of(step)]:  # a better one came, and will come again
            return None
        damage = self.checkpoints.damage(step)
        if damage is None:
            return None
        self.checkpoints.console.warn(f"{damage.message}; going on from before it, to make it again")
        return int(step)

    def _has_checkpoint_before(self, step: int) -> bool:
        return any(folder < self._of_run.folder_of(step) for folder in self._of_run.saved())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this."""
        bar = None if math.isinf(self._bar) else self._bar
        best = {"step": self.step, "values": self.values, "kept": self._is_kept, "waited": self._waited, "bar": bar}
        return {"best": best}

    def restore(self, progress: dict[str, Any], done: int) -> None:
        """Go on from a checkpoint after `done` steps; better ones made after it are made again.

        Those are deleted: of the states that are kept, the newest must be the best one.
        """
        self._lost = None
        if self.saves:
            self.checkpoints.delete_after(done)
        known = progress.get("best", {})
        self.step, self.values = known.get("step"), known.get("values", {})
        self._is_kept = known.get("kept", True)
        self._waited, bar = known.get("waited", 0), known.get("bar")
        self._bar = math.inf if bar is None else bar
        if self.saves and self.step is not None and not self._is_kept:  # keep_best was asked for on the way
            self.checkpoints.console.warn(
                f"the state of the lowest {LOSS} so far ({self.loss:.4g} after step {self.step:,}) was not kept, as "
                "keep_best was off; the lowest from here on is"
            )
            self.step, self.values = None, {}
