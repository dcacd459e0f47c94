"""A DeepSpeed JSON read as training keys, and what of it has no counterpart here.

    zero_optimization.stage   0               parallel.mode: ddp
                              1, 2            parallel: {mode: fsdp, reshard: false}
                              3               parallel.mode: fsdp
      mics_shard_size S                       parallel: {mode: hsdp, shard_size: S}
      offload_optimizer, offload_param: cpu   parallel.offload
    train_batch_size                          rows_per_step
    train_micro_batch_size_per_gpu            micro_batch_rows
    gradient_clipping                         max_grad_norm (0: null)
    optimizer AdamW, Adam                     optimizer: adamw, learning_rate, betas, eps, weight_decay
    scheduler WarmupLR, WarmupDecayLR,        schedule: constant, linear, cosine; warmup_steps, learning_rate,
              WarmupCosineLR                  max_steps, min_learning_rate_ratio
    bf16.enabled, and neither                 precision: bf16, fp32
    steps_per_print                           log_every_steps

`"auto"` leaves a key to the training config. Everything else is named in `unmapped`, with the reason. Nothing of
DeepSpeed is needed, and no torch: this is read with the config.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ALWAYS_SO = {
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_gather_fp16_weights_on_model_save",
    "gather_16bit_weights_on_model_save",
}
"""Switches for what happens here in any case: the saved model is whole."""
_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


@dataclass(frozen=True, kw_only=True)
class DeepSpeedSettings:
    """What a DeepSpeed JSON says."""

    values: dict[str, Any]
    """Keys of the training config; `parallel` holds a mapping."""
    sources: dict[str, str]
    """Key -> the place in the JSON that it comes from."""
    unmapped: tuple[str, ...]
    """`place: why`, for all that was not taken over."""


def read_deepspeed(path: str | Path) -> DeepSpeedSettings:
    """Read a DeepSpeed JSON. ValueError naming the file, and the place in it, when it makes no sense."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a DeepSpeed config is an object of keys and values")
    reader = _Reader(path=Path(path), rest=_flat(data))
    for part in (_batch, _zero, _numbers, _optimizer, _scheduler):
        part(reader)
    for place in sorted(reader.rest):
        if place.rpartition(".")[2] not in _ALWAYS_SO:
            reader.leave(place, "has no counterpart here")
    return DeepSpeedSettings(values=reader.values, sources=reader.sources, unmapped=tuple(reader.unmapped))


def merged(data: Mapping[str, Any], settings: DeepSpeedSettings, path: object) -> dict[str, Any]:
    """`data`, keys of a training config, filled up from a DeepSpeed JSON. ValueError where the two disagree."""
    result = dict(data)
    for key, value in _flat(settings.values).items():
        outer, _, inner = key.partition(".")
        section = result
        if inner:
            given = result.get(outer, {})
            section = result[outer] = dict(
                given if isinstance(given, Mapping) else given.model_dump(exclude_unset=True)
            )
        name = inner or outer
        if name in section and not _same(section[name], value):
            raise ValueError(
                f"{key} is {section[name]}, but {path} says {settings.sources[key]}: {value}; remove one of the two"
            )
        section[name] = value
    return result


@dataclass(kw_only=True)
class _Reader:
    """Takes places of the JSON one by one; what is left over was not mapped."""

    path: Path
    rest: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    unmapped: list[str] = field(default_factory=list)

    def take(self, place: str) -> Any:
        """The value at a place, or None where there is none or it is "auto"."""
        value = self.rest.pop(place, None)
        return None if value == "auto" else value

    def number(self, place: str, kind: Callable[[Any], Any] = float) -> Any:
        """The same, as a number."""
        value = self.take(place)
        if value is None:
            return None
        try:
            return kind(value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.path}: {place} should be a number, not {value!r}") from None

    def set(self, key: str, value: Any, place: str) -> None:
        """A key of the training config, if there is a value for it."""
        if value is None:
            return
        if key in self.sources and not _same(_flat(self.values)[key], value):
            raise ValueError(f"{self.path}: {self.sources[key]} and {place} disagree about {key}")
        outer, _, inner = key.partition(".")
        if inner:
            self.values.setdefault(outer, {})[inner] = value
        else:
            self.values[outer] = value
        self.sources[key] = place

    def leave(self, place: str, why: str) -> None:
        """Say why a place was not mapped."""
        self.unmapped.append(f"{place}: {why}")


def _batch(reader: _Reader) -> None:
    whole, micro = reader.number("train_batch_size", int), reader.number("train_micro_batch_size_per_gpu", int)
    accumulation = reader.number("gradient_accumulation_steps", int)
    if None not in (whole, micro, accumulation) and whole % (micro * accumulation):
        raise ValueError(
            f"{reader.path}: train_batch_size ({whole}) is no multiple of train_micro_batch_size_per_gpu ({micro}) x "
            f"gradient_accumulation_steps ({accumulation})"
        )
    reader.set("rows_per_step", whole, "train_batch_size")
    reader.set("micro_batch_rows", micro, "train_micro_batch_size_per_gpu")
    if accumulation is not None:
        why = "follows from rows_per_step, micro_batch_rows and the number of processes"
        if whole is None:
            why = f"{why}; without train_batch_size, set rows_per_step to the rows of a whole step"
        reader.leave("gradient_accumulation_steps", why)


def _zero(reader: _Reader) -> None:
    prefix = "zero_optimization"
    stage = reader.number(f"{prefix}.stage", int)
    if stage not in (None, 0, 1, 2, 3):
        raise ValueError(f"{reader.path}: {prefix}.stage should be 0, 1, 2 or 3, not {stage}")
    shard_size = reader.number(f"{prefix}.mics_shard_size", int)
    if stage is not None:
        hybrid = stage == 3 and shard_size is not None and shard_size > 0
        reader.set("parallel.mode", "ddp" if stage == 0 else "hsdp" if hybrid else "fsdp", f"{prefix}.stage")
        if stage in (1, 2):
            reader.set("parallel.reshard", False, f"{prefix}.stage")
        if hybrid:
            reader.set("parallel.shard_size", shard_size, f"{prefix}.mics_shard_size")
    for part in ("offload_optimizer", "offload_param"):
        device = reader.take(f"{prefix}.{part}.device")
        if device == "cpu" and stage:
            reader.set("parallel.offload", True, f"{prefix}.{part}")
        elif device not in (None, "none"):
            reader.leave(f"{prefix}.{part}.device", f"{device} with stage {stage} has no counterpart here")
        for detail in [place for place in reader.rest if place.startswith(f"{prefix}.{part}.")]:
            reader.take(detail)


def _numbers(reader: _Reader) -> None:
    clipping = reader.number("gradient_clipping")
    if clipping is not None:
        reader.values["max_grad_norm"] = clipping or None
        reader.sources["max_grad_norm"] = "gradient_clipping"
    reader.set("log_every_steps", reader.number("steps_per_print", int), "steps_per_print")
    bf16, fp16 = reader.take("bf16.enabled"), reader.take("fp16.enabled")
    if bf16:
        reader.set("precision", "bf16", "bf16.enabled")
    elif fp16:
        reader.leave("fp16.enabled", "there is no fp16 here; bf16 needs no loss scaling (training.precision)")
    elif bf16 is False or fp16 is False:
        reader.set("precision", "fp32", "bf16.enabled" if bf16 is False else "fp16.enabled")
    for detail in [place for place in reader.rest if place.startswith("fp16.")]:
        reader.take(detail)  # of its loss scaling


def _optimizer(reader: _Reader) -> None:
    name = reader.take("optimizer.type")
    if name not in (None, "Adam", "AdamW"):
        reader.leave("optimizer.type", f"{name} is not here; training.optimizer says which one is used")
        return
    if name is not None:
        reader.set("optimizer", "adamw", "optimizer.type")
    prefix = "optimizer.params"
    if reader.rest.get(f"{prefix}.adam_w_mode") is False:
        reader.leave(f"{prefix}.adam_w_mode", "weight decay is always decoupled here (AdamW)")
    for ours in ("adam_w_mode", "torch_adam"):
        reader.take(f"{prefix}.{ours}")
    reader.set("learning_rate", reader.number(f"{prefix}.lr"), f"{prefix}.lr")
    reader.set("eps", reader.number(f"{prefix}.eps"), f"{prefix}.eps")
    reader.set("weight_decay", reader.number(f"{prefix}.weight_decay"), f"{prefix}.weight_decay")
    betas = reader.number(f"{prefix}.betas", lambda pair: [float(beta) for beta in pair])
    reader.set("betas", betas, f"{prefix}.betas")


def _scheduler(reader: _Reader) -> None:
    name, prefix = reader.take("scheduler.type"), "scheduler.params"
    if name is None:
        return
    if name not in _SCHEDULES:
        reader.leave("scheduler.type", f"{name} is not here; training.schedule says which one is used")
        return
    reader.set("schedule", _SCHEDULES[name], "scheduler.type")
    reader.set("warmup_steps", reader.number(f"{prefix}.warmup_num_steps", int), f"{prefix}.warmup_num_steps")
    reader.set("max_steps", reader.number(f"{prefix}.total_num_steps", int), f"{prefix}.total_num_steps")
    reader.set("learning_rate", reader.number(f"{prefix}.warmup_max_lr"), f"{prefix}.warmup_max_lr")
    lowest = 0.0 if name == "WarmupDecayLR" else reader.number(f"{prefix}.cos_min_ratio")
    if name != "WarmupLR":
        reader.set("min_learning_rate_ratio", lowest, f"{prefix}.cos_min_ratio")
    if (kind := reader.take(f"{prefix}.warmup_type")) not in (None, "linear"):
        reader.leave(f"{prefix}.warmup_type", f"{kind}: the warm-up is a line here")
    for start in ("warmup_min_lr", "warmup_min_ratio"):
        if reader.number(f"{prefix}.{start}"):
            reader.leave(f"{prefix}.{start}", "the warm-up begins near zero here")


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return bool(one == other)
