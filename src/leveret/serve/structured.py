"""The fields of a request that ask for an answer of a given form: OpenAI's `response_format` and vLLM's names.

    response_format       {"type": "text" | "json_object"} or {"type": "json_schema", "json_schema": {"schema": ...}}
    structured_outputs    vLLM: {"json" | "regex" | "choice" | "grammar": ...} or {"json_object": true}
    guided_json, guided_regex, guided_choice, guided_grammar     vLLM before 0.12

A schema is always obeyed to the letter, so `strict: false` changes nothing. Two forms in one request are an error.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leveret.engine.structure import Structure
from leveret.errors import RequestError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


class JsonSchemaBody(_Part):
    """OpenAI's wrapping of a schema."""

    json_schema: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Part):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema belongs to the type "json_schema", and only to it')
        return self


class StructuredOutputs(_Part):
    """vLLM's `structured_outputs`."""

    json_: dict[str, Any] | bool | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StructuredFields(BaseModel):
    """What a body may say about the form of its answers."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    def structure(self) -> Structure | None:
        """The form that is asked for, if one is; RequestError when it is none, or when there are two."""
        asked = self.structured_outputs or StructuredOutputs()
        forms = [
            *_from_response_format(self.response_format),
            *_of_kinds("structured_outputs.", asked.json_, asked.regex, asked.choice, asked.grammar),
            *([Structure.json_object(param="structured_outputs.json_object")] if asked.json_object else []),
            *_of_kinds("guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar),
        ]
        if len(forms) > 1:
            raise RequestError(
                f"{forms[0].param} and {forms[1].param} both say what form the answer has; give one",
                param=forms[1].param,
                code="invalid_value",
            )
        return forms[0] if forms else None


def _from_response_format(asked: ResponseFormat | None) -> list[Structure]:
    if asked is None or asked.type == "text":
        return []
    if asked.type == "json_object":
        return [Structure.json_object(param="response_format")]
    schema = None if asked.json_schema is None else asked.json_schema.json_schema
    return [Structure.json(True if schema is None else schema, param="response_format.json_schema.schema")]


def _of_kinds(
    prefix: str,
    schema: dict[str, Any] | bool | str | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> list[Structure]:
    """The forms that vLLM has a field each for, of whichever names."""
    forms = []
    if schema is not None:
        forms.append(Structure.json(schema, param=f"{prefix}json"))
    if regex is not None:
        forms.append(Structure.of_regex(regex, param=f"{prefix}regex"))
    if choice is not None:
        forms.append(Structure.of_choice(choice, param=f"{prefix}choice"))
    if grammar is not None:
        forms.append(Structure.of_grammar(grammar, param=f"{prefix}grammar"))
    return forms
