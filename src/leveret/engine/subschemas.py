"""The schemas inside a JSON Schema, by the keywords of draft 2020-12 and of those before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ONE = (
    *("additionalProperties", "items", "not", "if", "then", "else", "contains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "additionalItems"),
)
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_MAPS = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The schemas directly inside a schema, each with its path of one or two keys; definitions first."""
    for keyword in _MAPS:
        inner = schema.get(keyword)
        if isinstance(inner, Mapping):
            yield from (((keyword, name), each) for name, each in inner.items())
    for keyword in _ONE:
        if isinstance(schema.get(keyword), Mapping | bool):
            yield (keyword,), schema[keyword]
    for keyword in _LISTS:
        inner = schema.get(keyword)
        if isinstance(inner, list):
            yield from (((keyword, index), each) for index, each in enumerate(inner))
