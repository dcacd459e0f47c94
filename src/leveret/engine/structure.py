"""Structure: the form that a caller wants an answer to have: a JSON Schema, an expression, a choice, a grammar.

    model.generate("A person:", schema={"type": "object", "properties": {"name": {"type": "string"}}})
    model.generate("Is it raining?", choice=["yes", "no"])

`grammar.py` compiles it and keeps the model to it. JSON is written as Python's `json.dumps` writes it: one space after
a comma and a colon, none elsewhere. That is how most training data is written, and since nothing is left to choose
between two keys, all of it is skipped: only values cost a step of the model. A model that may write white space
anywhere can moreover write nothing else for ever.

A JSON Schema is read as draft 2020-12 says, so unknown keywords and unknown formats describe and do not restrict; the
formats of `tools/tool.py` (HH:MM, phone) do. Keywords that would restrict and cannot be compiled are errors.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from leveret.chat.messages import checked_text
from leveret.engine.defaults import SamplingOptions
from leveret.engine.endless_schema import EndlessParts
from leveret.engine.subschemas import subschemas
from leveret.errors import RequestError
from leveret.tools.tool import FORMATS

Kind = Literal["json", "regex", "choice", "lark", "gbnf"]

GRAMMAR_FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)
"""Formats of strings that the grammar library enforces."""

URI_SIGNS = "#/%:?@!$&'()*+,;=~"
"""What a reference may hold besides letters and digits of ASCII; the grammar library takes no others."""

MAX_CHARACTERS = 1_000_000
"""Longest form that is compiled: the grammar library may need many seconds to say that one is too large."""

MAX_PROPERTIES = 5000
"""Most properties of an object; the time to compile grows with their square. OpenAI draws the same line."""


class StructureOptions(TypedDict, total=False):
    """Keyword arguments that ask for a form; at most one of them."""

    schema: Any
    """A JSON Schema: a mapping, its JSON text, or a pydantic model."""
    regex: str
    """An expression that the whole answer matches: no look-around, no back-references; \\d, \\w and \\s are ASCII."""
    choice: Sequence[str]
    """Texts, one of which the answer is."""
    grammar: str
    """A context-free grammar, in Lark's notation (`start: ...`) or llama.cpp's GBNF (`root ::= ...`)."""
    structure: Structure
    """A form that is read already."""


class AnswerOptions(SamplingOptions, StructureOptions, total=False):
    """Keyword arguments of generate, chat and stream: how to sample, and what form the answer has."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A form, checked as far as that goes without compiling it."""

    kind: Kind
    source: str
    """The schema as JSON text, the choice as a JSON list, the expression or the grammar as given."""
    param: str
    """What the caller calls it, for errors."""

    @classmethod
    def json(cls, schema: Any, *, param: str = "schema") -> Structure:
        """JSON of a schema: a mapping, a JSON text, true, or a class with pydantic's `model_json_schema`."""
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{param} is not JSON: {error}", param=param, code="invalid_schema") from None
        if not isinstance(schema, Mapping | bool):
            raise RequestError(
                f"{param} must be a JSON Schema, an object, not {type(schema).__name__}",
                param=param,
                code="invalid_schema",
            )
        if schema is False:
            raise RequestError(f"{param} is false: nothing fits it", param=param, code="invalid_schema")
        read = {} if schema is True else dict(schema)
        try:
            source = json.dumps(readable(read), allow_nan=False)
            if '"$ref"' in source:
                source = json.dumps(readable(read, EndlessParts(read)))
            most = _most_properties(read)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"{param} is not JSON: {error}", param=param, code="invalid_schema") from None
        if len(source) > MAX_CHARACTERS or most > MAX_PROPERTIES:
            raise RequestError(
                f"{param} is too large: it has {len(source):,} characters and an object with {most:,} properties; "
                f"at most {MAX_CHARACTERS:,} and {MAX_PROPERTIES:,} are compiled",
                param=param,
                code="invalid_schema",
            )
        return cls(kind="json", source=source, param=param)

    @classmethod
    def json_object(cls, *, param: str = "response_format") -> Structure:
        """Any JSON object."""
        return cls.json({"type": "object"}, param=param)

    @classmethod
    def of_choice(cls, choice: Sequence[str], *, param: str = "choice") -> Structure:
        """One of some texts."""
        texts = [] if isinstance(choice, str) else list(choice)
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise RequestError(
                f"{param} must be a list of texts that are not empty, not {choice!r}", param=param, code="invalid_value"
            )
        for text in texts:
            checked_text(text, param)
        return cls(kind="choice", source=json.dumps(texts), param=param)

    @classmethod
    def of_regex(cls, regex: str, *, param: str = "regex") -> Structure:
        """A text that an expression matches from its first to its last character."""
        return cls(kind="regex", source=_text(regex, param), param=param)

    @classmethod
    def of_grammar(cls, grammar: str, *, param: str = "grammar") -> Structure:
        """A text of a context-free grammar; `::=` marks GBNF, anything else is Lark."""
        text = _text(grammar, param)
        return cls(kind="gbnf" if "::=" in text else "lark", source=text, param=param)

    @classmethod
    def from_options(cls, options: StructureOptions) -> Structure | None:
        """The form that keyword arguments ask for, if they do. RequestError when there are two."""
        given = [name for name, value in options.items() if value is not None]
        if len(given) > 1:
            raise RequestError(
                f"{' and '.join(given)} both say what form the answer has; give one",
                param=given[1],
                code="invalid_value",
            )
        if not given:
            return None
        if given[0] == "structure":
            return options["structure"]
        if given[0] == "schema":
            return cls.json(options["schema"])
        if given[0] == "regex":
            return cls.of_regex(options["regex"])
        if given[0] == "choice":
            return cls.of_choice(options["choice"])
        return cls.of_grammar(options["grammar"])


def split_options(options: AnswerOptions) -> tuple[Structure | None, SamplingOptions]:
    """The form that the options ask for, and the rest of them."""
    sampling, form = SamplingOptions(), StructureOptions()
    for name, value in options.items():
        target: Any = form if name in StructureOptions.__optional_keys__ else sampling
        target[name] = value
    return Structure.from_options(form), sampling


def readable(schema: Any, endless: Container[object] = ()) -> Any:
    """The schema with formats that only describe left out, our own ones written as patterns, and no `x-guidance`.

    (`x-guidance` would switch checks of the grammar library off.) References to names such as `地址` or `List[int]`,
    which many write as they are, become URIs. `endless`: parts of it that become `false`.
    """
    if not isinstance(schema, Mapping):
        return schema
    changed = {key: value for key, value in schema.items() if key != "x-guidance"}
    if isinstance(changed.get("$ref"), str):
        changed["$ref"] = quote(changed["$ref"], safe=URI_SIGNS)
    form = changed.get("format")
    if isinstance(form, str) and form not in GRAMMAR_FORMATS:
        del changed["format"]
        if form in FORMATS and "pattern" not in changed:
            changed["pattern"] = f"^(?:{FORMATS[form]})$"
    for path, inner in subschemas(schema):
        holder: Any = changed
        for key in path[:-1]:
            if holder[key] is schema[key]:  # a list or a mapping of schemas, which is copied once
                holder[key] = holder[key].copy()
            holder = holder[key]
        holder[path[-1]] = inner not in endless and readable(inner, endless)
    return changed


def _most_properties(schema: Any) -> int:
    """How many properties the largest object in a schema has."""
    if not isinstance(schema, Mapping):
        return 0
    own = schema.get("properties")
    inner = (_most_properties(each) for _, each in subschemas(schema))
    return max(len(own) if isinstance(own, Mapping) else 0, *inner, 0)


def _text(value: object, param: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RequestError(
            f"{param} must be a text that is not empty, not {value!r}", param=param, code="invalid_value"
        )
    return checked_text(value, param)
