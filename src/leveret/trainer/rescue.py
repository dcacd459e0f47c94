"""What a run does when its loss jumps or is no longer a number: look into the step, and go back if it may.

    on_spike       ignore | report | rollback        (spikes.py says what a spike is)
    on_non_finite  stop | rollback

*Report* writes forensics/step-N.html and goes on. *Rollback* writes it too, then gives up `spike_skip_steps` steps: the
one in which the loss was seen, and those before it. The loss of a step is measured before its update, so either its
rows are odd, or the update just before did the damage; both are skipped. The decision goes into the journal, the
newest checkpoint before the skipped steps is loaded, and the steps up to them are made again, with the same bits.

So nothing depends on where the checkpoints were or how often the run was killed: the weights at the end are those of
a run that never made the skipped updates. That needs a checkpoint old enough, which is why one is saved before the
first step, and one is kept beyond `keep_checkpoints` if need be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

from leveret.console import Console
from leveret.errors import NonFiniteLoss, TrainingError
from leveret.trainer.batches import Batch
from leveret.trainer.checkpoint import Checkpoints
from leveret.trainer.config import TrainingConfig
from leveret.trainer.forensics import Forensics
from leveret.trainer.journal import Decision, Journal
from leveret.trainer.spikes import Spike, SpikeDetector
from leveret.trainer.step import StepResult


class Setback(Exception):
    """The run must go back; the journal says what it skips from now on. Never seen outside the loop."""


class Rescue:
    """Judges every step of a run, before its update."""

    def __init__(
        self, config: TrainingConfig, checkpoints: Checkpoints, journal: Journal, forensics: Forensics, console: Console
    ) -> None:
        self.config, self.checkpoints, self.journal = config, checkpoints, journal
        self.forensics, self.console = forensics, console
        self._detector = None
        if config.on_spike != "ignore":
            self._detector = SpikeDetector(window=config.spike_window, threshold=config.spike_threshold)

    def judge(self, step: int, batches: Sequence[Batch], result: StepResult) -> Spike | None:
        """Called with what a step found before its update. Raises Setback when the run must go back."""
        spike = None if self._detector is None else self._detector.see(result.loss)
        if spike is None:
            return None
        goes_back = self.config.on_spike == "rollback"
        facts = {"loss": spike.loss, "typical": spike.typical, "limit": spike.limit}
        more = {"gradient_norm": result.gradient_norm, "learning_rate": result.learning_rate}
        self._report(step, batches, "spike", facts | more, goes_back)
        if goes_back:
            self._go_back(step, "spike", facts)
        return spike

    def non_finite(self, step: int, batches: Sequence[Batch], error: NonFiniteLoss) -> NoReturn:
        """Called when a step ended in `error`; raises it, or Setback when the run goes back instead."""
        goes_back = self.config.on_non_finite == "rollback"
        typical = None if self._detector is None else self._detector.typical
        facts: dict[str, Any] = {} if typical is None else {"typical": typical}
        self._report(step, batches, "non-finite", {"what": error.message, **facts}, goes_back)
        if goes_back:
            self._go_back(step, "non-finite", facts)
        raise error

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this."""
        return {"decisions": len(self.journal)} | ({} if self._detector is None else {"spikes": self._detector.state()})

    def restore(self, progress: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if self._detector is not None:
            self._detector.restore(progress.get("spikes", {}))

    def _report(self, step: int, batches: Sequence[Batch], reason: str, facts: dict[str, Any], goes_back: bool) -> None:
        first = self._first_skipped(step) + 1
        action = f"rolled back; steps {first} to {step + 1} are skipped" if goes_back else "only reported"
        if reason == "non-finite" and not goes_back:
            action = "the run ended" + ("" if self.config.optimizer_in_backward else " before the update")
        try:
            report, page = self.forensics.report(step, batches, reason=reason, action=action, facts=facts)
        except OSError as error:  # a full disk: the report is not worth the run
            self.console.warn(f"no report on step {step + 1} could be written: {error}")
            return
        worst = report.rows[0]
        seen = f"loss {facts['loss']:.3f}, typically {facts['typical']:.3f}" if reason == "spike" else facts["what"]
        self.console.warn(f"step {step + 1}: {reason}: {seen}; highest: {_loss(worst.loss)} in {worst.key}; see {page}")

    def _first_skipped(self, step: int) -> int:
        """Not before the oldest checkpoint there is, which a run that was not begun with rollback may lack."""
        oldest = self.checkpoints.oldest_step() or 0
        return min(step, max(step + 1 - self.config.spike_skip_steps, oldest))

    def _go_back(self, step: int, reason: str, facts: dict[str, Any]) -> NoReturn:
        if len(self.journal) >= self.config.max_rollbacks:
            raise TrainingError(
                f"step {step + 1}: {reason} again after {len(self.journal)} roll-backs (max_rollbacks)",
                hint="so many are hardly the data's fault: lower learning_rate, raise warmup_steps, look at forensics/",
            )
        finite = {name: value for name, value in facts.items() if math.isfinite(value)}
        self.journal.add(Decision(step=step, first_skipped=self._first_skipped(step), reason=reason, facts=finite))
        raise Setback


def _loss(value: float) -> str:
    return f"{value:.3f}"
