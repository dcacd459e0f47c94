"""Generation defaults: what a model's own generation_config.json says about sampling and stopping.

The file is transformers' (`do_sample`, `temperature`, `max_new_tokens`, `eos_token_id` ...). As there, nothing is
sampled unless `do_sample` is true, whatever the temperature says; then the temperature is 1 if absent. Filters that
are absent are off. What a caller gives goes over these defaults field by field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypedDict

from leveret.config import suggest
from leveret.engine.request import SamplingParams
from leveret.errors import RequestError, WeightsError


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`, each optional: keyword arguments of generate, chat and stream."""

    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    logprobs: int | None
    seed: int | None
    stop: str | tuple[str, ...] | list[str]
    stop_ids: tuple[int, ...] | list[int]
    banned_ids: tuple[int, ...] | list[int]
    ignore_eos: bool
    skip_special_tokens: bool


_NEUTRAL = SamplingParams()


def read_defaults(directory: Path) -> SamplingParams:
    """The defaults of the model in a directory; those of `SamplingParams` where it has no generation_config.json.

    Raises WeightsError when the file is damaged or a value in it is out of range.
    """
    path = directory / "generation_config.json"
    if not path.exists():
        return SamplingParams()
    try:
        config = json.loads(path.read_text("utf-8-sig"))
        if not isinstance(config, dict):
            raise TypeError(f"holds a {type(config).__name__}, not an object")
        return _from_config(config)
    except (ValueError, TypeError, RequestError) as error:
        raise WeightsError(f"{path}: {error}", hint="mend the file or remove it") from None


def with_options(params: SamplingParams, options: SamplingOptions) -> SamplingParams:
    """The params with a caller's options over them; stop ids are added to, not replaced.

    None is a value of those that it turns off (`top_k`, `seed` ...); of others it says that the caller has no wish.
    Raises RequestError for an unknown option or a value out of range.
    """
    known = [item.name for item in fields(SamplingParams)]
    changes: dict[str, Any] = dict(options)
    for name in changes:
        if name not in known:
            near = suggest(name, known)
            hint = f"did you mean {near!r}?" if near else f"options: {', '.join(known)}"
            raise RequestError(f"unknown sampling option {name!r}", param=name, code="unknown_parameter", hint=hint)
    changes = {name: value for name, value in changes.items() if value is not None or getattr(_NEUTRAL, name) is None}
    if isinstance(changes.get("stop"), str):
        changes["stop"] = (changes["stop"],)
    for name in ("stop", "stop_ids", "banned_ids"):
        if name in changes:
            changes[name] = _listed(name, changes[name])
    if "stop_ids" in changes:
        changes["stop_ids"] = tuple(dict.fromkeys((*params.stop_ids, *changes["stop_ids"])))
    if "logit_bias" in changes:
        changes["logit_bias"] = _pairs(changes["logit_bias"])
    return replace(params, **changes)


def _from_config(config: dict[str, Any]) -> SamplingParams:
    changes: dict[str, Any] = {
        "max_tokens": config.get("max_new_tokens"),
        "repetition_penalty": config.get("repetition_penalty"),
        "stop_ids": _ids(config.get("eos_token_id")),
    }
    if config.get("do_sample"):
        changes["temperature"] = config.get("temperature", 1.0)
        changes |= {name: config.get(name) or None for name in ("top_k", "top_p", "min_p")}
    changes = {name: value for name, value in changes.items() if value is not None}
    for name, value in changes.items():
        if name != "stop_ids" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(f"{name} is {value!r}, which is no number")
    return replace(SamplingParams(), **changes)


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if any(isinstance(index, bool) or not isinstance(index, int) for index in ids):
        raise TypeError(f"eos_token_id is {value!r}, which is neither an id nor a list of ids")
    return ids


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise RequestError(f"{name} is {value!r}; it must be a list", param=name, code="invalid_value")
    return tuple(value)


def _pairs(bias: Any) -> tuple[tuple[Any, Any], ...]:
    if not isinstance(bias, Mapping) or any(isinstance(key, str) for key in bias):
        raise RequestError(
            f"logit_bias is {bias!r}; it must be numbers by token ids", param="logit_bias", code="invalid_value"
        )
    return tuple(sorted(bias.items()))
