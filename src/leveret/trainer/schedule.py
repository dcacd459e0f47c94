"""The learning rate as a pure function of the optimizer step.

Nothing here counts, so nothing can be forgotten on resume or counted twice under gradient accumulation: the rate at
step k depends on k and on constants only. With W warm-up steps, N steps in all, peak p and floor f = ratio * p:

    k < W            p * (k + 1) / W                         the first step is not wasted at zero
    constant         p
    linear           p + (f - p) * t                         t = (k - W) / (N - W), in [0, 1)
    polynomial       f + (p - f) * (1 - t)^power
    cosine           f + (p - f) * (1 + cos(pi * t)) / 2     Loshchilov and Hutter 2016, one half period
    cosine_restarts  the same with c * t modulo 1 for t      c = num_cycles falls, each from the peak
    inverse_sqrt     max(f, p * sqrt(W / k))                 Vaswani et al. 2017
    wsd              p until the last D steps, then          Hu et al. 2024 (MiniCPM); D = max(1, round(fraction * N)),
                     f + (p - f) * shape(d)                  but at most N - W; d = fallen steps / D; shape(d) is 1 - d,
                                                             cosine or 1 - sqrt(d)
    steps            max(f, p * ratio^m)                     m milestones passed: DeepSeek LLM (2401.02954)

Step W itself is at the peak and the last step is one notch above the floor, so every step does work. These are the
curves of transformers' schedulers, but for the warm-up, which there begins with a step at zero.

Runs in stages need no schedule of their own: a stable stage is `constant`, the decay on other data a second stage that
begins from its model with `wsd` and decay_fraction 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from leveret.errors import ConfigError
from leveret.trainer.config import ROUNDING, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step of one run."""

    config: TrainingConfig
    """Where the shape, the peak, the floor and the warm-up come from."""
    total_steps: int
    """Optimizer steps of the whole run."""

    def __post_init__(self) -> None:
        if self.warmup and self.warmup >= self.total_steps:
            key = "warmup_steps" if self.config.warmup_steps else "warmup_fraction"
            steps = "" if self.config.warmup_steps else f" ({self.warmup} steps)"
            raise ConfigError(
                f"training.{key} is {getattr(self.config, key)}{steps}, but the data and the batch give only "
                f"{self.total_steps} optimizer steps",
                hint=f"lower {key}, or raise num_epochs or max_steps",
            )

    @property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        return self.config.warmup_steps or math.ceil(self.config.warmup_fraction * self.total_steps - ROUNDING)

    def at(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        peak = self.config.learning_rate
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        floor = self.config.min_learning_rate_ratio
        match self.config.schedule:
            case "inverse_sqrt":
                return peak * max(floor, math.sqrt(self.warmup / step))
            case "steps":
                passed = sum(step >= share * self.total_steps - ROUNDING for share in self.config.milestones)
                return peak * max(floor, self.config.milestone_ratio**passed)
            case _:
                return peak * (floor + (1 - floor) * self._height(step))

    def _height(self, step: int) -> float:
        """Where between floor (0) and peak (1) the rate is after the warm-up."""
        config = self.config
        progress = (step - self.warmup) / (self.total_steps - self.warmup)
        match config.schedule:
            case "linear":
                return 1 - progress
            case "polynomial":
                return float((1 - progress) ** config.power)
            case "cosine":
                return _half_cosine(progress)
            case "cosine_restarts":
                return _half_cosine(progress * config.num_cycles % 1)
            case "wsd":
                decay_steps = max(1, round(config.decay_fraction * self.total_steps))
                decay_steps = min(decay_steps, self.total_steps - self.warmup)
                fallen = max(0, step - (self.total_steps - decay_steps)) / decay_steps
                shapes = {"linear": 1 - fallen, "cosine": _half_cosine(fallen), "sqrt": 1 - math.sqrt(fallen)}
                return shapes[config.decay_shape]
        return 1.0  # constant


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2
