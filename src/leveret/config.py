"""Configs: pydantic models that are the one truth for recipes, command lines, help pages and defaults.

A verb's config is written like this, in a file that imports no torch:

    class PretrainConfig(Config):
        model: Annotated[str, Positional(0)]                  # also `leveret pretrain MODEL`
        \"\"\"The model to start from: a folder or a hub name.\"\"\"
        output: Path
        \"\"\"The folder to write.\"\"\"
        num_layers: Annotated[int, Rehearsal(2)] = Field(default=12, gt=0)
        \"\"\"Decoder layers.\"\"\"

* The docstring under a field is its help. The default stands here and nowhere else. "Off" is None.
* A field named `output: Path` is the folder the command writes; the pipeline and `seed: int` work alike:
  a stage that does not set them gets the recipe's.
* Configs nest: `training: TrainingConfig = TrainingConfig()`, required or None. Other defaults for the same keys
  are a subclass's, never arguments here, for `training.max_steps=1` begins from the class's defaults.
* Every `Path` (and a string naming something that exists) is an input whose content the pipeline hashes.
* `Positional(order)` makes a field an argument of the command line as well.
* `Rehearsal(value)` says what the field becomes in `leveret rehearse`: a number is only ever made smaller
  (`min`), anything else is replaced, None included unless `if_set`. Mark what makes a run big: layers, steps, rows,
  bytes.
* A field that another one makes idle is named by `unread`, so that a rehearsal does not set it.
* What is not seen in the config alone, a quantized model that is to be trained, `whole_models` asks the recipe to see.
* Wrong combinations raise ValueError in a `model_validator`; the message is shown as it is.
* Unknown keys are refused, with the nearest known key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pydantic
from pydantic_core import ErrorDetails

from leveret.errors import ConfigError
from leveret.spelling import suggest
from leveret.yaml_files import apply_overrides, read_yaml

__all__ = [
    "Config",
    "Flag",
    "Positional",
    "Rehearsal",
    "apply_overrides",
    "dotted_keys",
    "fingerprint",
    "mistakes",
    "nested_config",
    "parse_config",
    "read_yaml",
    "rehearsed",
    "suggest",
]


class Config(pydantic.BaseModel):
    """The parent of every config: frozen, checked, no unknown keys, help from docstrings."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    makes_quantized: ClassVar[bool] = False
    """Whether the model in `output` is quantized."""

    def keeps_form_of(self) -> str | None:
        """The model that is written to `output` as it is stored, quantized or not; None: `makes_quantized` says it."""
        return None

    def whole_models(self) -> Iterator[tuple[str, str, str]]:
        """The models whose numbers must be whole: key, reference, and what is to be said of a quantized one."""
        return iter(())

    def unread(self) -> frozenset[str]:
        """The keys that count for nothing beside the others: setting them is refused or told, so rehearsals do not."""
        return frozenset()

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """`max_steps=true` is no number, though to Python, and so to pydantic, True is 1."""
        kinds = list(_leaves(cls.model_fields[info.field_name or ""].annotation))
        is_number = (int in kinds or float in kinds) and bool not in kinds and Any not in kinds
        if is_number and (switch := _switch_in(value)) is not None:
            raise ValueError(f"should be a number, not {str(switch).lower()}")
        return value


@dataclass(frozen=True)
class Positional:
    """Marks a field as a positional argument of its command; arguments are filled in the order given here.

    A field that holds a list takes all remaining arguments.
    """

    order: int
    places: bool = False
    """Whether its texts name models, files or folders: then `modle=x` is no such text but a key with a typing error."""


@dataclass(frozen=True)
class Flag:
    """Marks how a field is spelled as an option, where its own name cannot be that (`json` is taken by pydantic)."""

    name: str


@dataclass(frozen=True)
class Rehearsal:
    """Marks what a field becomes in a rehearsal: the smaller of two numbers, or this value."""

    value: Any
    if_set: bool = False
    """Whether a field that is None stays None."""


C = TypeVar("C", bound=Config)


def parse_config(model: type[C], data: Mapping[str, Any], *, source: str) -> C:
    """`data` as a `model`, or one ConfigError that lists every mistake; `source` says where `data` came from."""
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        found = [_explain(model, detail) for detail in error.errors()]
    if len(found) == 1:
        raise ConfigError(f"{source}: {found[0]}")
    raise ConfigError("\n  ".join([f"{source} has {len(found)} mistakes:", *found]))


def mistakes(model: type[Config], data: Mapping[str, Any]) -> list[str]:
    """Every mistake in `data`, each as `key: what is wrong`; [] when there is none."""
    try:
        model.model_validate(data)
    except pydantic.ValidationError as error:
        return [_explain(model, detail) for detail in error.errors()]
    return []


def rehearsed(config: C) -> C:
    """The config with every `Rehearsal` field made small, also in configs nested in it; checked again."""
    return parse_config(type(config), _rehearse(config), source=f"the rehearsal of {type(config).__name__}")


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of a config, dataclass, path, mapping, sequence, set or plain value."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dotted_keys(model: type[Config], prefix: str = "") -> Iterator[str]:
    """All keys of a config, the nested ones as `outer.inner`."""
    for name, info in model.model_fields.items():
        inner = nested_config(info.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from dotted_keys(inner, f"{prefix}{name}.")


def nested_config(annotation: Any) -> type[Config] | None:
    """The config class of a field that holds one config (or one or None); else None."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [nested_config(choice) for choice in typing.get_args(annotation) if choice is not type(None)]
        return inner[0] if len(inner) == 1 else None
    return None


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that the value of a field may have, those of the items of a list included."""
    arguments = () if typing.get_origin(annotation) is typing.Literal else typing.get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _leaves(argument)


def _switch_in(value: Any) -> bool | None:
    """The first True or False in a value, also in its lists."""
    if isinstance(value, bool) or not isinstance(value, list | tuple):
        return value if isinstance(value, bool) else None
    return next((found for item in value if (found := _switch_in(item)) is not None), None)


def _item_config(annotation: Any) -> type[Config] | None:
    """The config class of the items of a list; else None."""
    items = typing.get_args(annotation) if typing.get_origin(annotation) in (list, tuple) else ()
    return nested_config(items[0]) if items else None


def _rehearse(config: Config) -> dict[str, Any]:
    """Only keys that were set or shrunk, so that defaults worked out from other fields are worked out anew."""
    data = {name: _rehearse_value(getattr(config, name)) for name in config.model_fields_set}
    unread = config.unread()
    for name, info in type(config).model_fields.items():
        if name in unread:
            continue
        value = getattr(config, name)
        for mark in info.metadata:
            if isinstance(mark, Rehearsal) and not (mark.if_set and value is None):
                data[name] = _smaller(value, mark.value)
        if name not in data and nested_config(info.annotation) is not None and value is not None:
            data[name] = _rehearse(value)
    return data


def _rehearse_value(value: Any) -> Any:
    if isinstance(value, Config):
        return _rehearse(value)
    if isinstance(value, list | tuple):
        return [_rehearse_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _rehearse_value(item) for key, item in value.items()}
    return value


def _smaller(value: Any, rehearsal: Any) -> Any:
    numbers = (int, float)
    if isinstance(value, numbers) and isinstance(rehearsal, numbers) and not isinstance(rehearsal, bool):
        return min(value, rehearsal)
    return rehearsal


def _canonical(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return _canonical(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _canonical({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_canonical(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_canonical(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} has no fingerprint")


def _explain(model: type[Config], detail: ErrorDetails) -> str:
    """One of pydantic's errors as `key: what is wrong`."""
    key = ".".join(str(part) for part in detail["loc"] if not _is_branch(part))
    if detail["type"] == "extra_forbidden":
        return f"{key}: there is no such key{_nearest_key(model, detail['loc'])}"
    if detail["type"] == "missing":
        return f"{key}: must be given"
    what = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    what = what.replace("Input should be", "should be").replace("Input should", "should")
    what = what.replace("List should", "should").replace(" after validation", "")
    what = re.sub(r"^Input is not a valid path\b.*", "should be a path", what)
    if not key:
        return what
    given = repr(detail["input"])
    if len(given) <= 60 and detail["type"] != "value_error":
        what += f", not {given}"
    if detail["type"] == "literal_error":
        near = suggest(str(detail["input"]), re.findall(r"'([^']*)'", detail["msg"]))
        what += "" if near is None else f"; did you mean {near}?"
    return f"{key}: {what}"


def _is_branch(part: int | str) -> bool:
    """Whether a part of pydantic's places names one of several types that a value may have, and no key."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool"))


def _nearest_key(model: type[Config], location: tuple[int | str, ...]) -> str:
    """`; did you mean ...?` with a key at the same depth, or one of this name elsewhere in the config."""
    inner: type[Config] | None = model
    for part in location[:-1]:
        if isinstance(part, int):  # a place in a list of configs, which was entered with the list
            continue
        info = None if inner is None else inner.model_fields.get(part)
        inner = None if info is None else nested_config(info.annotation) or _item_config(info.annotation)
    *way, wrong = (str(part) for part in location)
    near = None if inner is None else suggest(wrong, inner.model_fields)
    if near is not None:
        near = ".".join([*way, near])
    if near is None or near.rpartition(".")[2] != wrong.replace("-", "_"):
        elsewhere = [key for key in dotted_keys(model) if key.rpartition(".")[2] == wrong.replace("-", "_")]
        near = elsewhere[0] if elsewhere else near
    return "" if near is None else f"; did you mean {near}?"
