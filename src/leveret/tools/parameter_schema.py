"""One property of a JSON Schema becomes one `Parameter`, or an error naming tool, parameter and keyword.

JSON Schema draft 2020-12, the part that a flat function call needs. Keywords that only describe (title, examples) are
dropped; keywords that would restrict a value and that `Parameter` cannot carry are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from leveret.errors import ToolError
from leveret.tools.pattern import lengths, parse_pattern, strip_anchors
from leveret.tools.tool import FORMATS, Parameter, ParameterType

_DESCRIBING = {"title", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment", "nullable"}
_COMMON = {"type", "description", "default", "enum", "const"} | _DESCRIBING
_KEYWORDS: Mapping[str, set[str]] = {
    "string": _COMMON | {"minLength", "maxLength", "pattern", "format", "x-extractive"},
    "integer": _COMMON | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "format"},
    "number": _COMMON | {"minimum", "maximum", "format"},
    "boolean": _COMMON,
}
_TYPES: Mapping[str, ParameterType] = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
}


def read_parameter(
    tool: str, name: str, schema: Any, *, required: bool, definitions: Mapping[str, Any] | None = None
) -> Parameter:
    """Read the schema of one property; `definitions` are the `$defs` it may refer to. Raises ToolError."""
    where = f"tool {tool}, parameter {name}"
    if not isinstance(schema, Mapping):
        raise ToolError(f"{where}: its schema must be a JSON object, not {schema!r}")
    schema, nullable, words = _flatten(where, dict(schema), definitions or {})
    schema_type = schema.get("type")
    if schema_type is None and isinstance(schema.get("enum"), list):
        schema_type = "string"
    if not isinstance(schema_type, str) or schema_type not in _TYPES:
        raise ToolError(
            f"{where}: type {schema_type!r} is not supported",
            hint="use string, integer, number, boolean or an enum of strings; turn lists and objects into parameters",
        )
    for keyword in schema.keys() - _KEYWORDS[schema_type]:
        raise ToolError(f"{where}: {keyword!r} of type {schema_type!r} is not supported", hint="remove it")
    parameter = Parameter(
        name=name,
        type="enum" if "enum" in schema else _TYPES[schema_type],
        description=str(schema.get("description") or ""),
        required=required and not nullable,
        choices=_choices(where, schema["enum"]) if "enum" in schema else words,
        minimum=_bound(where, schema, "minimum", "exclusiveMinimum", upward=True),
        maximum=_bound(where, schema, "maximum", "exclusiveMaximum", upward=False),
        min_length=_length(where, schema, "minLength") or 0,
        max_length=_length(where, schema, "maxLength"),
        format=_format(where, schema) if schema_type == "string" else None,
        pattern=_pattern(where, schema.get("pattern")),
        extractive=bool(schema.get("x-extractive", False)),
        default=schema.get("default"),
    )
    _check_sense(where, parameter)
    return parameter


def _flatten(
    where: str, schema: dict[str, Any], definitions: Mapping[str, Any]
) -> tuple[dict[str, Any], bool, tuple[str, ...]]:
    """Resolve $ref, const, null and anyOf: the plain schema, whether null is allowed, and words besides the format."""
    schema = _resolve(where, schema, definitions)
    alternatives = [*_branches(where, schema, "anyOf"), *_branches(where, schema, "oneOf")]
    branches = [_resolve(where, dict(branch), definitions) for branch in alternatives]
    concrete = [branch for branch in branches if branch.get("type") != "null"]
    nullable = len(concrete) < len(branches)
    words: tuple[str, ...] = ()
    if len(concrete) == 2:
        concrete.sort(key=lambda branch: "enum" in branch)
        if "enum" in concrete[0] or "enum" not in concrete[1] or concrete[0].get("type") != "string":
            raise ToolError(f"{where}: a choice between types is not supported", hint="declare one type")
        words = _choices(where, concrete.pop()["enum"])
    if len(concrete) > 1:
        raise ToolError(f"{where}: a choice between {len(concrete)} schemas is not supported", hint="declare one type")
    schema = {**concrete[0], **schema} if concrete else schema
    kinds = schema.get("type")
    if isinstance(kinds, list):
        named = [kind for kind in kinds if kind != "null"]
        if len(named) > 1:
            raise ToolError(f"{where}: a choice between types {kinds} is not supported", hint="declare one type")
        nullable, schema["type"] = nullable or len(named) < len(kinds), next(iter(named), None)
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    if schema.get("default", 0) is None:
        del schema["default"]
    return schema, nullable, words


def _branches(where: str, schema: dict[str, Any], keyword: str) -> list[Mapping[str, Any]]:
    """The schemas of an anyOf or oneOf, which is taken out."""
    branches = schema.pop(keyword, [])
    if not isinstance(branches, list) or not all(isinstance(branch, Mapping) for branch in branches):
        raise ToolError(f"{where}: {keyword} must be a list of schemas, not {branches!r}")
    return branches


def _resolve(where: str, schema: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    reference = schema.pop("$ref", None)
    if reference is None:
        return schema
    target = definitions.get(str(reference).rsplit("/", 1)[-1])
    if not isinstance(target, Mapping) or "$ref" in target:
        raise ToolError(f"{where}: {reference!r} is not among the schema's $defs")
    return {**target, **schema}


def _choices(where: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise ToolError(f"{where}: an enum must be a list of strings, not {values!r}")
    if len(set(values)) < len(values):
        raise ToolError(f"{where}: the enum names a value twice: {values}")
    return tuple(values)


def _bound(where: str, schema: Mapping[str, Any], keyword: str, exclusive: str, *, upward: bool) -> float | None:
    """The bound that a value may reach. Of an integer it is a whole number, and the tighter of two counts.

    `upward`: a lower bound. OpenAPI 3.0 writes `"exclusiveMinimum": true` beside a minimum, and means that one.
    """
    bound, beyond = _number(where, schema, keyword), schema.get(exclusive)
    if isinstance(beyond, bool):
        bound, beyond = (None, bound) if beyond else (bound, None)
    elif exclusive in schema:
        beyond = _number(where, schema, exclusive)
    if schema.get("type") != "integer":  # of others, exclusive bounds are refused
        return bound
    reached = [] if bound is None else [math.ceil(bound) if upward else math.floor(bound)]
    reached += [] if beyond is None else [math.floor(beyond) + 1 if upward else math.ceil(beyond) - 1]
    return None if not reached else max(reached) if upward else min(reached)


def _number(where: str, schema: Mapping[str, Any], keyword: str) -> float | None:
    value = schema.get(keyword)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not number:
        raise ToolError(f"{where}: {keyword} must be a number, not {value!r}")
    return value


def _length(where: str, schema: Mapping[str, Any], keyword: str) -> int | None:
    value = schema.get(keyword)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ToolError(f"{where}: {keyword} must be a whole number from 0 on, not {value!r}")
    return value


def _format(where: str, schema: Mapping[str, Any]) -> str | None:
    value = schema.get("format")
    if value is not None and not isinstance(value, str):
        raise ToolError(f"{where}: format must be a word, not {value!r}")
    return value


def _pattern(where: str, pattern: Any) -> str | None:
    if pattern is None:
        return None
    try:
        body = strip_anchors(str(pattern))
        parse_pattern(body)
    except ToolError as error:
        raise ToolError(f"{where}: {error.message}", hint=error.hint) from None
    return body


def _check_sense(where: str, parameter: Parameter) -> None:
    """Refuse a parameter no value can fit, and a default that does not fit."""
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None and low > high:
        raise ToolError(f"{where}: minimum {low} is greater than maximum {high}")
    if parameter.max_length is not None and parameter.max_length < parameter.min_length:
        raise ToolError(f"{where}: maxLength {parameter.max_length} is less than minLength {parameter.min_length}")
    _check_length(where, parameter)
    if parameter.choices and parameter.type == "string" and parameter.format not in FORMATS and not parameter.pattern:
        raise ToolError(f"{where}: words besides a free string restrict nothing", hint="drop the enum or the string")
    if parameter.default is not None and (problem := parameter.problem(parameter.taken(parameter.default))):
        raise ToolError(f"{where}: its default {problem}")


def _check_length(where: str, parameter: Parameter) -> None:
    """Refuse a length that nothing has which fits the format or the pattern."""
    if parameter.type != "string" or parameter.body is None:
        return
    shortest, longest = lengths(parse_pattern(parameter.body))
    least, most = parameter.min_length, math.inf if parameter.max_length is None else parameter.max_length
    words = any(least <= len(word) <= most for word in parameter.choices)
    if (shortest > most or longest < least) and not words:
        what = "pattern" if parameter.pattern is not None else f"format {parameter.format}"
        known = f"{shortest}" if shortest == longest else f"{shortest} to {longest}".replace("to inf", "or more")
        raise ToolError(f"{where}: no value fits its length: the {what} has {known} characters")
