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

`"auto"` leaves a key to the training config. Where an optimizer or a scheduler is there and a number of it is not, the
number is DeepSpeed's own default, unless the training config says one: the run is that of the JSON. Everything else is
named in `unmapped`, with the reason. Nothing of DeepSpeed is needed, and no torch: this is read with the config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.trainer.deepspeed_places import Places, flat, same

_ALWAYS_SO = {
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_gather_fp16_weights_on_model_save",
    "gather_16bit_weights_on_model_save",
}
"""Switches for what happens here in any case: the saved model is whole."""
_PEAK, _WARMUP_STEPS = 1e-3, 1000
_ADAMW = (("lr", "learning_rate", _PEAK), ("betas", "betas", [0.9, 0.999]), ("eps", "eps", 1e-8))
"""DeepSpeed's own defaults: of `warmup_max_lr` and `lr`, `warmup_num_steps`, and the optimizer's other numbers."""
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
    defaults: dict[str, Any]
    """Keys that the JSON leaves to DeepSpeed, with what DeepSpeed then takes; the training config may say otherwise."""


def read_deepspeed(path: str | Path) -> DeepSpeedSettings:
    """Read a DeepSpeed JSON. ValueError naming the file, and the place in it, when it makes no sense."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a DeepSpeed config is an object of keys and values")
    places = flat(data)
    reader = Places(path=Path(path), rest=places, given=frozenset(places))
    for part in (_batch, _zero, _numbers, _optimizer, _scheduler):
        part(reader)
    for place in sorted(reader.rest):
        if place.rpartition(".")[2] not in _ALWAYS_SO:
            reader.leave(place, "has no counterpart here")
    return DeepSpeedSettings(
        values=reader.values,
        sources=reader.sources,
        unmapped=tuple(reader.unmapped),
        defaults={key: value for key, value in reader.defaults.items() if key not in reader.values},
    )


def merged(data: Mapping[str, Any], settings: DeepSpeedSettings, path: object) -> dict[str, Any]:
    """`data`, keys of a training config, filled up from a DeepSpeed JSON. ValueError where the two disagree."""
    result = dict(data)
    for key, value in flat(settings.values).items():
        outer, _, inner = key.partition(".")
        section = result
        if inner:
            given = result.get(outer, {})
            section = result[outer] = dict(
                given if isinstance(given, Mapping) else given.model_dump(exclude_unset=True)
            )
        name = inner or outer
        if name in section and not same(section[name], value):
            raise ValueError(
                f"{key} is {section[name]}, but {path} says {settings.sources[key]}: {value}; remove one of the two"
            )
        section[name] = value
    written = {"warmup_steps"} if "warmup_fraction" in result else set()  # the two say the same
    return {key: value for key, value in settings.defaults.items() if key not in written} | result


def _batch(reader: Places) -> None:
    whole, micro = reader.count("train_batch_size"), reader.count("train_micro_batch_size_per_gpu")
    accumulation = reader.count("gradient_accumulation_steps")
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


def _zero(reader: Places) -> None:
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
            if reader.rest.get(f"{prefix}.{part}.pin_memory"):
                reader.take(f"{prefix}.{part}.pin_memory")  # as PyTorch does
        elif device not in (None, "none"):
            reader.leave(f"{prefix}.{part}.device", f"{device} with stage {stage} has no counterpart here")
        else:
            for detail in [place for place in reader.rest if place.startswith(f"{prefix}.{part}.")]:
                reader.take(detail)  # of what is not wanted


def _numbers(reader: Places) -> None:
    clipping = reader.number("gradient_clipping")
    if clipping is not None:
        reader.values["max_grad_norm"] = clipping or None
        reader.sources["max_grad_norm"] = "gradient_clipping"
    reader.set("log_every_steps", reader.number("steps_per_print", int), "steps_per_print")
    bf16, fp16 = reader.switch("bf16.enabled"), reader.switch("fp16.enabled")
    if bf16:
        reader.set("precision", "bf16", "bf16.enabled")
    elif fp16:
        reader.leave("fp16.enabled", "there is no fp16 here; bf16 needs no loss scaling (training.precision)")
    elif bf16 is False or fp16 is False:
        reader.set("precision", "fp32", "bf16.enabled" if bf16 is False else "fp16.enabled")
    for detail in [place for place in reader.rest if place.startswith("fp16.")]:
        reader.take(detail)  # of its loss scaling


def _optimizer(reader: Places) -> None:
    name = reader.take("optimizer.type")
    if name not in (None, "Adam", "AdamW"):
        reader.leave("optimizer.type", f"{name} is not here; training.optimizer says which one is used")
        return
    if name is not None:
        reader.set("optimizer", "adamw", "optimizer.type")
    prefix = "optimizer.params"
    if reader.rest.get(f"{prefix}.adam_w_mode") is False:
        reader.leave(f"{prefix}.adam_w_mode", "weight decay is always decoupled here (AdamW)")
    reader.take(f"{prefix}.adam_w_mode")
    by_torch = reader.take(f"{prefix}.torch_adam")
    reader.set("learning_rate", reader.number(f"{prefix}.lr"), f"{prefix}.lr")
    reader.set("eps", reader.number(f"{prefix}.eps"), f"{prefix}.eps")
    reader.set("weight_decay", reader.number(f"{prefix}.weight_decay"), f"{prefix}.weight_decay")
    betas = reader.number(f"{prefix}.betas", lambda pair: [float(beta) for beta in pair])
    reader.set("betas", betas, f"{prefix}.betas")
    if name is not None:
        for place, key, value in _ADAMW:
            reader.otherwise(key, value, f"{prefix}.{place}")
        reader.otherwise("weight_decay", 0.01 if by_torch else 0.0, f"{prefix}.weight_decay")


def _scheduler(reader: Places) -> None:
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
    _scheduler_defaults(reader, name, prefix)
    if (kind := reader.take(f"{prefix}.warmup_type")) not in (None, "linear"):
        reader.leave(f"{prefix}.warmup_type", f"{kind}: the warm-up is a line here")
    elif f"{prefix}.warmup_type" not in reader.given:
        reader.leave(f"{prefix}.warmup_type", "log, DeepSpeed's default: the warm-up is a line here")
    for start in ("warmup_min_lr", "warmup_min_ratio"):
        if reader.number(f"{prefix}.{start}"):
            reader.leave(f"{prefix}.{start}", "the warm-up begins near zero here")


def _scheduler_defaults(reader: Places, name: str, prefix: str) -> None:
    total = reader.values.get("max_steps")
    if f"{prefix}.warmup_num_steps" not in reader.given and total is not None and total <= _WARMUP_STEPS:
        raise ValueError(
            f"{reader.path}: {prefix}.warmup_num_steps is not there, and DeepSpeed's default of {_WARMUP_STEPS} is not "
            f"below total_num_steps ({total}); write it down"
        )
    reader.otherwise("warmup_steps", _WARMUP_STEPS, f"{prefix}.warmup_num_steps")
    if name == "WarmupCosineLR":
        reader.otherwise("min_learning_rate_ratio", 0.0001, f"{prefix}.cos_min_ratio")
    elif "optimizer.params.lr" not in reader.given:
        reader.otherwise("learning_rate", _PEAK, f"{prefix}.warmup_max_lr")
    elif f"{prefix}.warmup_max_lr" not in reader.given:
        reader.leave(f"{prefix}.warmup_max_lr", f"{_PEAK}, DeepSpeed's default: optimizer.params.lr counts here")
