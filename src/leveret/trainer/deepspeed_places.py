"""The places of a DeepSpeed JSON (`zero_optimization.stage`), taken one by one, and the keys of ours they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(kw_only=True)
class Places:
    """Takes the places of a JSON one by one; what is left over in `rest` was not mapped."""

    path: Path
    rest: dict[str, Any]
    given: frozenset[str]
    """All places, those that are "auto" included."""
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
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
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or (kind is int and isinstance(value, float) and number != value):
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{self.path}: {place} should be {what}, not {value!r}")
        return number

    def count(self, place: str) -> Any:
        """The same, as a whole number above 0."""
        value = self.number(place, int)
        if value is not None and value < 1:
            raise ValueError(f"{self.path}: {place} should be at least 1, not {value}")
        return value

    def switch(self, place: str) -> bool | None:
        """The same, as true or false; as a text too, which DeepSpeed reads."""
        value = self.take(place)
        word = value.strip().lower() if isinstance(value, str) else value
        if word not in (None, True, False, "true", "false"):
            raise ValueError(f"{self.path}: {place} should be true or false, not {value!r}")
        return word == "true" if isinstance(word, str) else word

    def set(self, key: str, value: Any, place: str) -> None:
        """A key of the training config, if there is a value for it."""
        if value is None:
            return
        if key in self.sources and not same(flat(self.values)[key], value):
            raise ValueError(f"{self.path}: {self.sources[key]} and {place} disagree about {key}")
        outer, _, inner = key.partition(".")
        if inner:
            self.values.setdefault(outer, {})[inner] = value
        else:
            self.values[outer] = value
        self.sources[key] = place

    def otherwise(self, key: str, value: Any, place: str) -> None:
        """What DeepSpeed takes for a key where the place says nothing, not even "auto"."""
        if place not in self.given:
            self.defaults[key] = value

    def leave(self, place: str, why: str) -> None:
        """Say why a place was not mapped."""
        self.unmapped.append(f"{place}: {why}")


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two values say the same: 1e-3 and "0.001", [0.9, 0.95] and (0.9, 0.95)."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return bool(one == other)
