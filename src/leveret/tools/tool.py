"""What a tool is: a name, a description and typed parameters that can judge a value.

A `Tool` is deliberately smaller than JSON Schema: flat parameters of five types. Everything here can be decided by
a finite automaton over bytes (`grammar.py`), which is why a constrained model cannot write an invalid call. `schema.py`
reads richer declarations and refuses, by name, what does not fit.

Strings may carry a format. `HH:MM` is a 24-hour time, `date` is YYYY-MM-DD between 1900 and 2099, `phone` a dialable
number; `choices` beside a format are extra words that are allowed too (a date may be "today"). Any other format is an
annotation that is kept but not checked, as JSON Schema says. `extractive` (JSON key `x-extractive`) promises that the
value is a piece of the request, letter by letter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from leveret.errors import ToolError

ParameterType = Literal["string", "integer", "number", "boolean", "enum"]
Value = str | int | float | bool

_MONTHS = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
_LEAP_YEARS = "(19|20)(0[48]|[2468][048]|[13579][26])|2000"
FORMATS: Mapping[str, str] = {
    "HH:MM": "([01][0-9]|2[0-3]):[0-5][0-9]",
    "date": f"(19|20)[0-9][0-9]-({_MONTHS})|({_LEAP_YEARS})-02-29",
    "phone": r"[+(*]?[0-9][0-9 ()./*#-]{0,22}[0-9#]",
}
"""Regular expressions, matched in full, of the formats that are checked."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One argument of a tool: its type and what values it takes."""

    name: str
    type: ParameterType
    description: str = ""
    required: bool = True
    choices: tuple[str, ...] = ()
    """The values of an enum; for a string with a format, words that are allowed besides it."""
    minimum: float | None = None
    maximum: float | None = None
    min_length: int = 0
    """In characters, strings only."""
    max_length: int | None = None
    format: str | None = None
    pattern: str | None = None
    """Regular expression without anchors that a string matches in full (see `pattern.py` for the subset)."""
    extractive: bool = False
    default: Value | None = None
    """What the tool itself takes when the argument is absent; told to the model, never filled in by us."""

    @property
    def body(self) -> str | None:
        """The expression a string must match in full, from `pattern` or a known `format`; None when free."""
        return self.pattern if self.pattern is not None else FORMATS.get(self.format or "")

    @property
    def free(self) -> bool:
        """True for a string of any characters, the kind that is copied from a request with its leading space."""
        return self.type == "string" and self.body is None

    def taken(self, value: Any) -> Any:
        """`value` as the parameter takes it: to JSON 5.0 is a way to write the integer 5."""
        whole = self.type == "integer" and isinstance(value, float) and value.is_integer()
        return int(value) if whole else value

    def problem(self, value: object) -> str | None:
        """Why `value` cannot be passed, in words that follow the parameter's name; None when it can."""
        if self.type == "boolean":
            return None if isinstance(value, bool) else f"must be true or false, not {_show(value)}"
        if self.type in ("integer", "number"):
            return self._number_problem(value)
        if not isinstance(value, str):
            return f"must be a string, not {_show(value)}"
        return self._string_problem(value)

    def _number_problem(self, value: object) -> str | None:
        kinds = int if self.type == "integer" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            article = "an integer" if self.type == "integer" else "a number"
            return f"must be {article}, not {_show(value)}"
        if self.minimum is not None and value < self.minimum:
            return f"is out of range: {value} is less than {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            return f"is out of range: {value} is greater than {self.maximum}"
        return None

    def _string_problem(self, value: str) -> str | None:
        if any("\ud800" <= character <= "\udfff" for character in value):
            return "is not valid Unicode (a lone surrogate)"
        if self.choices and value in self.choices:
            return None
        if self.type == "enum":
            return f"must be one of {', '.join(self.choices)}, not {_show(value)}"
        if len(value) < self.min_length:
            return f"has {len(value)} characters, fewer than {self.min_length}"
        if self.max_length is not None and len(value) > self.max_length:
            return f"has {len(value)} characters, more than {self.max_length}"
        if self.body is not None and not re.fullmatch(self.body, value, re.ASCII):
            words = f" or one of {', '.join(self.choices)}" if self.choices else ""
            return f"must look like {self.format or self.pattern}{words}, not {_show(value)}"
        return None


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function the model may call."""

    name: str
    description: str = ""
    parameters: tuple[Parameter, ...] = ()

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name; ToolError when the tool has none."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        names = ", ".join(parameter.name for parameter in self.parameters) or "none"
        raise ToolError(f"{self.name} has no parameter {name!r}", hint=f"its parameters: {names}")

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Value]:
        """The arguments in parameter order, absent (or null) optional ones left out.

        Raises ToolError for an unknown, missing or unfitting argument.
        """
        for name in arguments:
            self.parameter(name)
        present: dict[str, Value] = {}
        for parameter in self.parameters:
            value = parameter.taken(arguments.get(parameter.name))
            if value is None:
                if parameter.required:
                    raise ToolError(f"{self.name} needs the argument {parameter.name!r}")
                continue
            if problem := parameter.problem(value):
                raise ToolError(f"{self.name}: {parameter.name} {problem}")
            present[parameter.name] = value
        return present

    def to_openai(self) -> dict[str, Any]:
        """The declaration as an entry of OpenAI's `tools` list; `schema.tools_from_json` reads it back."""
        properties = {parameter.name: _json_schema(parameter) for parameter in self.parameters}
        required = [parameter.name for parameter in self.parameters if parameter.required]
        schema = {"type": "object", "properties": properties, "required": required}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": schema},
        }


def _json_schema(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string" if parameter.type == "enum" else parameter.type}
    if parameter.format is not None:
        schema["format"] = parameter.format
    if parameter.pattern is not None:
        schema["pattern"] = f"^(?:{parameter.pattern})$"
    if parameter.choices:
        if parameter.type == "enum":
            schema["enum"] = list(parameter.choices)
        else:
            schema = {"anyOf": [schema, {"type": "string", "enum": list(parameter.choices)}]}
    keywords = {
        "minimum": parameter.minimum,
        "maximum": parameter.maximum,
        "minLength": parameter.min_length or None,
        "maxLength": parameter.max_length,
        "default": parameter.default,
        "x-extractive": parameter.extractive or None,
        "description": parameter.description or None,
    }
    return schema | {key: value for key, value in keywords.items() if value is not None}


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
