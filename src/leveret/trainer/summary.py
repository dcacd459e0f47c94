"""How a training run went: the figures that a stage shows at its end and writes into outcome.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class TrainingSummary:
    """How a run went; figures cover the steps made by this process."""

    steps: int
    resumed_from_step: int
    seconds: float = 0.0
    tokens: int = 0
    loss: float | None = None
    peak_memory_bytes: int | None = None
    """Of the process, or of the accelerator."""
    stopped_early_after_step: int | None = None
    """When validation had not improved for as long as `early_stop_patience` says."""
    best_step: int | None = None
    """After how many steps the validation loss was lowest, if that was followed."""
    spikes: int = 0
    """Losses that stood far above those before them."""
    skipped_steps: int = 0
    """Steps of the whole run that made no update, after roll-backs."""
    validation: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For the stage's summary; without the figures of what did not happen."""
        rate = round(self.tokens / self.seconds) if self.seconds else None
        figures = {key: value for key, value in vars(self).items() if key != "validation"}
        for unusual in ("stopped_early_after_step", "best_step", "spikes", "skipped_steps"):
            if not figures[unusual]:
                del figures[unusual]
        figures |= {"seconds": round(self.seconds, 2), "tokens_per_second": rate, **self.validation}
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
