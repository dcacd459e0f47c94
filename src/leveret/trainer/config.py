"""TrainingConfig: every number that shapes a training run, written once.

A *step* is one update of the weights. It sees `rows_per_step` rows of `sequence_length` tokens, taken
`micro_batch_rows` at a time so that memory stays bounded; how the rows are cut into micro-batches changes the
speed and the memory, never the gradient (the loss is divided by the trained tokens of the whole step, once).
Everything below counts steps, not micro-batches.

The file knows no torch: `leveret --help`, `validate` and the planner read it for free.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from leveret.config import Config, Rehearsal
from leveret.trainer.deepspeed import merged, read_deepspeed
from leveret.trainer.fp8_config import Fp8Config
from leveret.trainer.parallel_config import ParallelConfig

FREE_TO_CHANGE = frozenset(
    {
        "checkpoint_every_steps",
        "keep_checkpoints",
        "keep_final_checkpoint",
        "evaluate_every_steps",
        "evaluate_rows",
        "log_every_steps",
        "recompute",
        "device",
        "parallel",
        "deepspeed",
        "async_checkpoints",
        "keep_best",
        "on_spike",
        "spike_window",
        "spike_threshold",
        "spike_skip_steps",
        "on_non_finite",
        "max_rollbacks",
        "report_to",
    }
)
"""Fields that may differ between a run and its resumption: they decide what is written down, not what is learnt; or how
a run that would have ended is brought to go on (what was decided until then is in its journal)."""

ROUNDING = 1e-9
"""How far a share times a whole number may lie above the whole number it is: 0.07 * 100 is 7.000000000000001."""

_READ_BY = {
    "decay_fraction": "wsd",
    "decay_shape": "wsd",
    "num_cycles": "cosine_restarts",
    "power": "polynomial",
    "milestones": "steps",
    "milestone_ratio": "steps",
}
"""Keys that one schedule reads; set with another they would do nothing, so that is refused."""


class DataSource(Config):
    """Some data and how often it is drawn; a bare path stands for a source of weight 1."""

    path: Path
    """A file, or a folder of files."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often each of its rows is seen in an epoch: 2 is twice; 0.5 is half of them, the others in the next epoch."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value


class TrainingConfig(Config):
    """How a model is trained: steps, batch, learning rate, optimizer, precision, checkpoints."""

    max_steps: Annotated[int | None, Field(ge=1), Rehearsal(20)] = None
    """Stop after this many optimizer steps. None: when `num_epochs` passes over the data are done."""
    num_epochs: Annotated[float | None, Field(gt=0)] = None
    """Passes over the data (a fraction is allowed). None: one pass, or as many as `max_steps` needs when that is
    given. When both are given the earlier end wins."""

    sequence_length: Annotated[int, Field(ge=8), Rehearsal(256)] = 512
    """Tokens in a row. Documents and samples are packed into rows; attention never crosses from one to another."""
    rows_per_step: Annotated[int, Field(ge=1), Rehearsal(4)] = 16
    """Rows that make one optimizer step: the global batch is rows_per_step x sequence_length tokens."""
    micro_batch_rows: Annotated[int, Field(ge=1), Rehearsal(4)] = 8
    """Rows that pass through the model at once (at most; a step's last micro-batch may be smaller)."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """The peak learning rate, reached at the end of the warm-up."""
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The learning rate at the end of the schedule, as a share of the peak (`constant` never falls)."""
    schedule: Literal[
        "constant", "linear", "cosine", "cosine_restarts", "polynomial", "inverse_sqrt", "wsd", "steps"
    ] = "cosine"
    """The shape after the warm-up; trainer/schedule.py has the formulas. `wsd` (warm-up, stable, decay) stays at the
    peak, then falls over the last `decay_fraction` of the steps; `steps` falls at each of `milestones`."""
    warmup_steps: Annotated[int, Field(ge=0), Rehearsal(2)] = 0
    """Steps over which the learning rate rises linearly to its peak; the first step is never at zero."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The warm-up as a share of all steps (rounded up), instead of `warmup_steps`."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of all steps that `wsd` spends falling."""
    decay_shape: Literal["linear", "cosine", "sqrt"] = "linear"
    """How `wsd` falls: in a line, as half a cosine, or as 1 - sqrt(t), which ends lower in loss for many."""
    num_cycles: Annotated[int, Field(ge=1)] = 1
    """How often `cosine_restarts` falls from the peak."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """The exponent of `polynomial`: 1 is a line, 2 falls fast and ends slowly."""
    milestones: list[float] = Field(default_factory=lambda: [0.8, 0.9])
    """Shares of all steps after which `steps` multiplies the learning rate by `milestone_ratio`."""
    milestone_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.316
    """What `steps` multiplies the learning rate by at a milestone: 0.316 twice is a tenth."""

    optimizer: Literal["adamw", "adamw_bf16", "adamw_8bit", "muon"] = "adamw"
    """adamw for everything; adamw_bf16 or adamw_8bit, the same with its averages in 2 bytes or in 1 instead of 4; or
    muon for the matrices inside the layers and adamw for the rest: fewer steps to the same loss."""
    stochastic_rounding: bool = False
    """Keep no fp32 masters: update the bf16 weights themselves, rounded by chance, so that small updates arrive in the
    mean. 4 bytes a parameter less; not with muon, not with precision: fp32."""
    optimizer_in_backward: bool = False
    """Update each parameter as soon as its gradient is known, so that gradients never exist all at once. 4 bytes a
    parameter less. Needs max_grad_norm: null, a step of one micro-batch, and an adamw."""
    max_parameter_grad_norm: Annotated[float | None, Field(gt=0)] = None
    """With optimizer_in_backward: the gradient of each parameter is scaled down to this length. None: never."""
    recompute: Literal["nothing", "layers"] = "nothing"
    """layers: keep only each layer's input for backward and compute the rest again. Same gradients, far less memory for
    activations, a third more arithmetic."""
    matrix_learning_rate_ratio: Annotated[float, Field(gt=0)] = 1.0
    """Muon's learning rate as a multiple of `learning_rate`. 1 suits large models; small ones take 3 to 5."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay on matrices and embeddings; norms and biases are never decayed."""
    decay_embeddings: bool = True
    """Whether weight decay applies to the embedding too (and so to a head that is tied to it)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two averaging rates: of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's guard against division by zero."""
    max_grad_norm: Annotated[float | None, Field(gt=0)] = 1.0
    """The gradient of the whole model is scaled down to this length when longer. None: never."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is trained. auto: on an accelerator if there is one; each process on its own."""
    parallel: ParallelConfig = ParallelConfig()
    """How several processes share the model."""
    deepspeed: Annotated[Path | None, Rehearsal(None)] = None
    """A DeepSpeed JSON that says some of these keys; what it says and is not here is listed when training begins."""
    router_aux_loss_coef: Annotated[float | None, Field(ge=0)] = None
    """Weight of the loss that spreads tokens evenly over a mixture's experts. None: what the model's config says."""
    router_z_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss that keeps the routers' logits small (ST-MoE trained with 0.001). 0: none."""
    router_balance: Literal["micro_batch", "step"] = "micro_batch"
    """Over which tokens the load is to be even. step: all of the step's, in all processes; with several micro-batches
    a process, that takes a third more arithmetic."""
    freeze_router: bool = False
    """Leave the routers of a mixture as they are, and train everything else."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of the weights and activations inside the model. The optimizer keeps fp32 masters, unless
    stochastic_rounding says otherwise."""
    fp8: Fp8Config | None = None
    """Multiply the Linears inside the layers in 8 bits, which saves time for large products on GPUs that can, and is
    emulated elsewhere. `fp8={}` is HARE's recipe. Needs precision: bf16."""

    checkpoint_every_steps: Annotated[int | None, Field(ge=1), Rehearsal(10)] = 200
    """Save the state of the run this often, so that a killed run goes on from there. None: only when asked to stop."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Checkpoints to keep; older ones are deleted. Two or more survive damage to the newest."""
    keep_final_checkpoint: bool = False
    """Save the state after the last step too, and leave it there (the newest one), to certify the saved model against
    it or to go on from it."""
    evaluate_every_steps: Annotated[int | None, Field(ge=1), Rehearsal(10, if_set=True)] = None
    """Measure the validation loss this often. None: only at the end."""
    evaluate_rows: Annotated[int, Field(ge=1), Rehearsal(4)] = 64
    """At most this many validation rows are used each time."""
    log_every_steps: Annotated[int, Field(ge=1)] = 10
    """Write a line to metrics.jsonl this often (the first and the last step are always written)."""
    report_to: list[Literal["tensorboard", "wandb", "swanlab", "trackio"]] = Field(default_factory=list)
    """Programs that get the same lines, besides metrics.jsonl and metrics.html."""

    async_checkpoints: bool = False
    """Write checkpoints while the next steps run. Takes as much memory again as a checkpoint: 12 bytes a parameter with
    adamw."""
    keep_best: bool = False
    """Save the state with the lowest validation loss apart, in checkpoints/best, and leave it there."""
    publish: Literal["last", "best"] = "last"
    """Which weights become `model/`: those after the last step, or those with the lowest validation loss."""
    early_stop_patience: Annotated[int | None, Field(ge=1)] = None
    """End the run after so many validations in a row without a lower loss. None: never."""
    early_stop_min_delta: Annotated[float, Field(ge=0)] = 0.0
    """How much lower a validation loss must be to count, for early_stop_patience."""

    on_spike: Literal["ignore", "report", "rollback"] = "report"
    """What to do when the loss of a step stands far above the last ones. report: write forensics/step-N.html, with the
    loss and the text of each row in it. rollback: also go back and skip that step (see spike_skip_steps)."""
    spike_window: Annotated[int, Field(ge=4)] = 64
    """How many of the last losses say what is typical."""
    spike_threshold: Annotated[float, Field(gt=0)] = 8.0
    """A spike is this many (robust) standard deviations above the median of the last losses."""
    spike_skip_steps: Annotated[int, Field(ge=1)] = 2
    """Steps that a roll-back skips: the one with the spike, whose rows may be odd, and those before it, whose updates
    may have done the damage."""
    on_non_finite: Literal["stop", "rollback"] = "stop"
    """What to do when a loss or a gradient is not a number: end the run before the update, or go back and skip it."""
    max_rollbacks: Annotated[int, Field(ge=1)] = 10
    """After so many roll-backs the next one ends the run."""

    @model_validator(mode="before")
    @classmethod
    def _from_deepspeed(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("deepspeed") is None:
            return data
        return merged(data, read_deepspeed(data["deepspeed"]), data["deepspeed"])

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.micro_batch_rows > self.rows_per_step:
            raise ValueError(
                f"micro_batch_rows ({self.micro_batch_rows}) is above rows_per_step ({self.rows_per_step}): "
                "a step would never fill one micro-batch; lower the first or raise the second"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        if self.optimizer != "muon" and self.matrix_learning_rate_ratio != 1:
            raise ValueError(
                f"matrix_learning_rate_ratio ({self.matrix_learning_rate_ratio}) is read by optimizer: muon only"
            )
        if self.fp8 is not None and self.precision != "bf16":
            raise ValueError(f"fp8 is for models whose other numbers are bf16, but precision is {self.precision}")
        self._refuse_unfit_optimizer()
        self._refuse_unfit_schedule()
        self._refuse_unfit_ending()
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be below max_steps ({self.max_steps}): "
                "the run would end before its peak learning rate"
            )
        return self

    def _refuse_unfit_schedule(self) -> None:
        for name, schedule in _READ_BY.items():
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if self.schedule != schedule and getattr(self, name) != default:
                raise ValueError(f"{name} ({getattr(self, name)}) is read by schedule: {schedule} only")
        if self.warmup_steps and self.warmup_fraction:
            raise ValueError(f"give warmup_steps ({self.warmup_steps}) or warmup_fraction, not both")
        if self.schedule == "inverse_sqrt" and not (self.warmup_steps or self.warmup_fraction):
            raise ValueError("schedule: inverse_sqrt falls as sqrt(warm-up / step), so it needs a warm-up")
        if self.milestones != sorted(set(self.milestones)) or not all(0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones must rise and lie between 0 and 1, got {self.milestones}")

    def _refuse_unfit_optimizer(self) -> None:
        if self.stochastic_rounding and (self.optimizer == "muon" or self.precision != "bf16"):
            raise ValueError(
                f"stochastic_rounding updates bf16 weights with an adamw, but optimizer is {self.optimizer} and "
                f"precision is {self.precision}"
            )
        if self.max_parameter_grad_norm is not None and not self.optimizer_in_backward:
            raise ValueError("max_parameter_grad_norm is read with optimizer_in_backward only; use max_grad_norm")
        small = self.optimizer in ("adamw_bf16", "adamw_8bit") or self.stochastic_rounding
        if self.parallel.is_sharded and (small or self.optimizer_in_backward):
            raise ValueError(
                f"parallel.mode {self.parallel.mode} cuts the state of adamw or muon into shares; smaller states, "
                "stochastic_rounding and optimizer_in_backward go with mode: ddp or one process"
            )
        if not self.optimizer_in_backward:
            return
        if self.optimizer == "muon":
            raise ValueError("optimizer_in_backward needs an adamw: muon updates matrices of one shape together")
        if self.max_grad_norm is not None:
            raise ValueError(
                f"optimizer_in_backward needs max_grad_norm: null (it is {self.max_grad_norm}): the norm of the whole "
                "gradient is known only after the updates; max_parameter_grad_norm bounds each parameter's own"
            )
        if self.micro_batch_rows != self.rows_per_step:
            raise ValueError(
                f"optimizer_in_backward needs a step of one micro-batch, but rows_per_step is {self.rows_per_step} and "
                f"micro_batch_rows is {self.micro_batch_rows}; set both to the same"
            )

    def _refuse_unfit_ending(self) -> None:
        if self.early_stop_patience is None and self.early_stop_min_delta:
            raise ValueError("early_stop_min_delta is read with early_stop_patience only")
        by_validation = self.early_stop_patience is not None or self.publish == "best" or self.keep_best
        if by_validation and self.evaluate_every_steps is None:
            raise ValueError("early_stop_patience, keep_best and publish: best need evaluate_every_steps")
        if self.publish == "best" and self.keep_final_checkpoint:
            raise ValueError(
                "keep_final_checkpoint keeps the last state and publish: best saves another; use keep_best to keep the "
                "checkpoint of the published weights"
            )

    @property
    def rolls_back(self) -> bool:
        """Whether the run may go back to a checkpoint and skip steps."""
        return "rollback" in (self.on_spike, self.on_non_finite)

    @property
    def validation_decides(self) -> bool:
        """Whether the weights that are published depend on the validation: when it ends the run, or chooses them."""
        return self.early_stop_patience is not None or self.publish == "best"

    def total_rows(self, rows_in_one_epoch: int) -> int:
        """Rows the whole run trains on, given how many the data holds. The last step may get fewer than the others."""
        if self.num_epochs is None:
            return rows_in_one_epoch if self.max_steps is None else self.max_steps * self.rows_per_step
        rows = max(1, math.ceil(self.num_epochs * rows_in_one_epoch - ROUNDING))
        return rows if self.max_steps is None else min(rows, self.max_steps * self.rows_per_step)

    def total_steps(self, rows_in_one_epoch: int) -> int:
        """Optimizer steps of the whole run, the last partial one included."""
        return math.ceil(self.total_rows(rows_in_one_epoch) / self.rows_per_step)

    def identity(self) -> dict[str, Any]:
        """The fields a resumed run must share with the run it goes on with (all but `FREE_TO_CHANGE`)."""
        free = set(FREE_TO_CHANGE)
        if self.validation_decides:
            free -= {"evaluate_every_steps", "evaluate_rows"}
        return self.model_dump(mode="json", exclude=free)
