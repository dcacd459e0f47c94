"""A recipe in several processes: the first one runs it, the others join it for the stages that train.

Under torchrun every process is started as `leveret run recipe.yaml`. Process 0 does what it would do alone. When it
comes to a stage that all can run together, it says so in torchrun's store, and the others run that stage too, each in
an isolated process as ever; meanwhile and otherwise they wait. So decisions (what is done, what is resumed) are made
once, a stage that does not train runs once, and a recipe reads the same for one process and for many. When process 0
dies, torchrun ends the others, wherever they wait.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from leveret.commands import StageResult
from leveret.console import Console
from leveret.pipeline.isolation import run_isolated
from leveret.ranks import Ranks
from leveret.recipe import Recipe, Stage

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_END = "the end"
_POLL_SECONDS = 0.1


class Invitations:
    """What process 0 says to the others, one message after another."""

    def __init__(self, ranks: Ranks) -> None:
        from leveret.trainer.world import meeting_place  # torch

        self._store: Store = meeting_place(ranks, "recipe")
        self._numbers = itertools.count()

    def invite(self, stage: Stage) -> str:
        """Call the others to a stage; what the gathering there is called."""
        return self._say(stage.name)

    def end(self) -> None:
        """Tell the others that the recipe is done."""
        self._say(_END)

    def next(self) -> tuple[str, str] | None:
        """Wait for the next invitation: the stage's name and the gathering's; None when the recipe is done."""
        key = f"message {next(self._numbers)}"
        while not self._store.check([key]):
            time.sleep(_POLL_SECONDS)
        name = self._store.get(key).decode()
        return None if name == _END else (name, f"{key}: {name}")

    def _say(self, what: str) -> str:
        key = f"message {next(self._numbers)}"
        self._store.set(key, what)
        return f"{key}: {what}"


def follow(recipe: Recipe, ranks: Ranks, console: Console) -> StageResult:
    """Run the stages that process 0 invites to, until it is done."""
    stages = {stage.name: stage for stage in recipe.stages}
    invitations = Invitations(ranks)
    joined = 0
    while (invitation := invitations.next()) is not None:
        name, gathering = invitation
        stage = stages[name]
        lock = recipe.output / f".stage-lock-{ranks.rank}"
        run_isolated(stage.command, stage.config, console, lock=lock, gathering=gathering)
        joined += 1
    return StageResult(output=None, summary={"stages": joined})
