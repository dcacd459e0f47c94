"""The learning rate as a pure function of the optimizer step.

Nothing here counts, so nothing can be forgotten on resume or counted twice under gradient accumulation: the rate at
step k depends on k and on constants only. With W warm-up steps, N steps in all, peak p and floor f = ratio * p:

    k < W       p * (k + 1) / W                         the first step is not wasted at zero
    constant    p
    linear      p + (f - p) * t                         t = (k - W) / (N - W), in [0, 1)
    cosine      f + (p - f) * (1 + cos(pi * t)) / 2     Loshchilov and Hutter 2016, one half period
    wsd         p until the last D steps, then linear   Hu et al. 2024 (MiniCPM); D = max(1, round(fraction * N))

Step W itself is at the peak and the last step is one notch above the floor, so every step does work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from leveret.errors import ConfigError
from leveret.trainer.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step of one run."""

    config: TrainingConfig
    """Where the shape, the peak, the floor and the warm-up come from."""
    total_steps: int
    """Optimizer steps of the whole run."""

    def __post_init__(self) -> None:
        if self.config.warmup_steps and self.config.warmup_steps >= self.total_steps:
            raise ConfigError(
                f"training.warmup_steps is {self.config.warmup_steps}, but the data and the batch give only "
                f"{self.total_steps} optimizer steps",
                hint="lower warmup_steps, or raise num_epochs or max_steps",
            )

    def at(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        config, peak = self.config, self.config.learning_rate
        if step < config.warmup_steps:
            return peak * (step + 1) / config.warmup_steps
        floor = peak * config.min_learning_rate_ratio
        progress = (step - config.warmup_steps) / (self.total_steps - config.warmup_steps)
        match config.schedule:
            case "constant":
                return peak
            case "linear":
                return peak + (floor - peak) * progress
            case "cosine":
                return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
            case "wsd":
                decay_steps = max(1, round(config.decay_fraction * self.total_steps))
                fallen = max(0, step - (self.total_steps - decay_steps))
                return peak + (floor - peak) * fallen / decay_steps
