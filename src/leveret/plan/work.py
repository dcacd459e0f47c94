"""What a stage does, in numbers that hold for every device: its model, tokens, arithmetic and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leveret.model.count import count, flops_per_token
from leveret.plan.known_model import KnownModel, UnknownModel, model_of
from leveret.plan.memory import Part, bytes_read_per_token, serving_parts, stored_bytes, training_parts
from leveret.plan.trained import Trained, trained_of
from leveret.plan.training_data import TrainingData, data_of
from leveret.recipe import Stage
from leveret.trainer.config import TrainingConfig

Kind = Literal["training", "serving", "quantizing", "other"]
_KINDS: dict[str, Kind] = {
    "pretrain": "training", "finetune": "training", "serve": "serving", "generate": "serving", "chat": "serving",
    "evaluate": "serving", "quantize": "quantizing",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Work:
    """One stage."""

    stage: Stage
    kind: Kind
    model: KnownModel | None
    data: TrainingData | None = None
    notes: tuple[str, ...] = ()
    """What is missing, and what was estimated."""

    @property
    def training(self) -> TrainingConfig:
        """The training section of a training stage."""
        config: Any = self.stage.config
        section: TrainingConfig = config.training
        return section

    @property
    def precision(self) -> str:
        """The number format that products are made in."""
        return self.training.precision if self.kind == "training" else "bf16"

    @property
    def trained(self) -> Trained:
        """What a training stage trains."""
        assert self.model is not None
        return trained_of(self.model.config, getattr(self.stage.config, "adapter", None))

    def flops_per_token(self) -> float:
        """Arithmetic of a trained token, with what is computed twice: layers again, choices of experts before."""
        assert self.model is not None
        config, length = self.model.config, self.training.sequence_length
        layers = flops_per_token(config, length, training=False) - 2 * config.vocab_size * config.hidden_size
        in_parts = self.training.micro_batch_rows < self.training.rows_per_step
        counted_before = config.moe is not None and self.training.router_balance == "step" and in_parts
        more = (self.training.recompute == "layers") + counted_before
        whole = flops_per_token(config, length, training=True)
        if not self.trained.is_everything:  # no gradients of frozen matrices
            head = 2 * config.vocab_size * config.hidden_size * self.trained.has_head
            whole += 6 * self.trained.thin_active + head - 2 * count(config).multiplied
            layers += 2 * self.trained.thin_active
        return whole + more * layers

    def optimizer_bytes_per_step(self) -> float:
        """What one update reads and writes."""
        assert self.model is not None
        numbers, training = self.trained.numbers, self.training
        averages = {"adamw_bf16": 8, "adamw_8bit": 4}.get(training.optimizer, 16)
        weights = 4 if training.stochastic_rounding else 8 if training.precision == "fp32" else 10
        return float(numbers * (averages + weights + (2 if training.optimizer_in_backward else 4)))

    def parts(self, *, compiled_kernels: bool) -> list[Part]:
        """Memory by part; nothing when the model is not known or none is used."""
        if self.model is None:
            return []
        if self.kind == "training":
            adapter: Any = getattr(self.stage.config, "adapter", None)
            rounded = adapter is not None and adapter.base is not None
            model = self.model.in_nf4() if rounded else self.model
            parts = training_parts(model, self.training, compiled_kernels=compiled_kernels, trained=self.trained)
            # On a CPU the whole model lies where it is then rounded and trained; elsewhere in the host's memory.
            more = stored_bytes(self.model) - sum(part.bytes for part in parts) if compiled_kernels else 0.0
            return [*parts, Part(name="loading, before rounding", bytes=more)] if rounded and more > 0 else parts
        if self.kind == "quantizing":
            # One full-precision tensor at a time, in fp32, with its rounded copy.
            largest = self.model.config.hidden_size * self.model.config.intermediate_size
            return [Part(name="one tensor at a time", bytes=12 * largest)]
        config: Any = self.stage.config
        mebibytes = getattr(getattr(config, "engine", None), "cache_memory_mib", None)
        return serving_parts(
            self.model.loaded(config),
            requests=getattr(config, "max_concurrent_requests", 1),
            context_tokens=getattr(config, "max_model_len", None),
            cache_bytes=None if mebibytes is None else float(mebibytes << 20),
        )

    def bytes_written(self) -> float:
        """The size of the model that a quantizing stage writes."""
        assert self.model is not None
        config: Any = self.stage.config
        return stored_bytes(self.model.quantized(config))

    def bytes_read_per_decoded_token(self) -> float:
        """What one generated token of one stream reads: all active weights."""
        assert self.model is not None
        return bytes_read_per_token(self.model.loaded(self.stage.config))


def work_of(
    stage: Stage, earlier: Sequence[Stage], *, vocab_size: int | None, tokens: int | None, bytes_per_token: float
) -> Work:
    """What `stage` does; what cannot be known is in the notes."""
    kind = _KINDS.get(stage.command.name, "other")
    if kind == "other":
        return Work(stage=stage, kind=kind, model=None, notes=("not forecast",))
    notes: list[str] = []
    model = None
    try:
        model = model_of(stage, earlier, vocab_size)
    except UnknownModel as error:
        notes.append(error.message)
    data = None
    if kind == "training":
        data = data_of(stage, tokens=tokens, bytes_per_token=bytes_per_token)
        notes += data.notes
    return Work(stage=stage, kind=kind, model=model, data=data, notes=tuple(notes))
