"""Schemas that only call for themselves: what no finite value can fit is found, and becomes `false`.

    {"$defs": {"link": {"type": "object", "properties": {"next": {"$ref": "#/$defs/link"}}, "required": ["next"]}}}

A link needs a link, which needs a link. The grammar library compiles this, and a model that begins a link never ends
it. Where nothing asks for one (an optional property, a branch of `anyOf`) it must not begin; where something does,
there is no answer at all, and the library says so once it reads `false`.

The parts of a schema form a graph of "all of these" and "one of these". From the parts that need nothing, it is walked
upwards once (Dowling and Gallier's algorithm for Horn clauses, so the time is linear): what is not reached has no end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from leveret.engine.subschemas import subschemas


@dataclass(eq=False)
class _Part:
    """A part of a schema."""

    num_missing: int = 0
    """How many more parts must have an end before this one has."""
    used_by: list[_Part] = field(default_factory=list)

    def needs(self, parts: Sequence[_Part], *, all_of_them: bool = True) -> None:
        """Let it need these parts, or one of them."""
        if parts and not all_of_them:
            one = _Part(num_missing=1)
            for part in parts:
                part.used_by.append(one)
            parts = [one]
        self.num_missing += len(parts)
        for part in parts:
            part.used_by.append(self)


class EndlessParts:
    """Which parts of a schema no finite value fits."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._free = _Part()
        self._parts: dict[int, _Part] = {}
        self._unread: list[Mapping[str, Any]] = []
        self._part(schema)
        while self._unread:
            inner = self._unread.pop()
            self._read(inner)
            for _, each in subschemas(inner):
                self._part(each)
        self._walk()

    def __contains__(self, schema: object) -> bool:
        """Whether a part, the very object, is one of them."""
        part = self._parts.get(id(schema))
        return part is not None and part.num_missing > 0

    def _walk(self) -> None:
        ended = [self._free, *(part for part in self._parts.values() if not part.num_missing)]
        while ended:
            for user in ended.pop().used_by:
                user.num_missing -= 1
                if user.num_missing == 0:
                    ended.append(user)

    def _part(self, schema: Any) -> _Part:
        """The part of a schema; of `true`, and of what is no schema, one that has an end."""
        if schema is False:
            return _Part(num_missing=1)
        if not isinstance(schema, Mapping):
            return self._free
        if id(schema) not in self._parts:
            self._parts[id(schema)] = _Part()
            self._unread.append(schema)
        return self._parts[id(schema)]

    def _read(self, schema: Mapping[str, Any]) -> None:
        part = self._part(schema)
        if isinstance(schema.get("$ref"), str):
            part.needs([self._part(self._target(schema["$ref"]))])
        part.needs([self._part(each) for each in _list(schema.get("allOf"))])
        for keyword in ("anyOf", "oneOf"):
            part.needs([self._part(each) for each in _list(schema.get(keyword))], all_of_them=False)
        if schema.get("type") in ("object", ["object"]):
            part.needs([self._part(each) for each in _required(schema)])
        if schema.get("type") in ("array", ["array"]):
            part.needs([self._part(each) for each in _first_items(schema)])

    def _target(self, reference: str) -> Any:
        """What a reference into this schema names; None for others."""
        if not reference.startswith("#"):
            return None
        target: Any = self._root
        for step in unquote(reference[1:]).split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, Mapping):
                target = target.get(key)
            else:
                return None
        return target


def _required(schema: Mapping[str, Any]) -> list[Any]:
    """The schemas of the properties that an object must have."""
    known, others = schema.get("properties"), schema.get("additionalProperties")
    others = None if "patternProperties" in schema else others
    known = known if isinstance(known, Mapping) else {}
    return [known.get(name, others) for name in _list(schema.get("required")) if isinstance(name, str)]


def _first_items(schema: Mapping[str, Any]) -> list[Any]:
    """The schemas of the items that an array must have."""
    least, first = schema.get("minItems"), _list(schema.get("prefixItems"))
    if not isinstance(least, int):
        return []
    return first[:least] + [schema.get("items")] * (len(first) < least)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
