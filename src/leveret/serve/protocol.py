"""The bodies of the OpenAI API that this server understands, and the refusal, by name, of all it does not.

Three kinds of fields:

* those of the models below are obeyed;
* `IGNORED` ones are accepted and change nothing, because clients send them and they ask for nothing we could answer;
* `NEUTRAL` ones are accepted only with the value that asks for nothing (`logprobs: false`); anything else is refused,
  since silently answering another question is worse than an error.

Every mistake is a RequestError whose `param` is the field, with list places counted from 0 (`messages[2].role`).
Source: https://platform.openai.com/docs/api-reference; `top_k`, `min_p`, `repetition_penalty` and `stop_token_ids` are
the names vLLM and llama.cpp use.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from leveret.config import suggest
from leveret.engine.structure import AnswerOptions
from leveret.engine.tool_calls import ToolChoice
from leveret.errors import RequestError
from leveret.serve.structured import StructuredFields

IGNORED = frozenset(
    ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"]
)
"""Accepted, and nothing depends on them."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none",),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
"""Accepted only with one of these values, or null."""

MAX_CHOICES = 16
"""Most choices (`n`) a request may ask for."""

MAX_PROMPTS = 128
"""Most prompts a completion request may have."""

MAX_STOPS = 16
"""Most stop strings a request may give."""


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FunctionBody(_Part):
    """A function the client offers; it is matched by name with those the model was trained on."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(_Part):
    """An entry of `tools`."""

    type: Literal["function"]
    function: FunctionBody


class NamedFunction(_Part):
    """The name inside a named tool choice."""

    name: str


class NamedChoice(_Part):
    """`tool_choice` that names a function."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(_Part):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Body(StructuredFields):
    """What both generating endpoints take. A field that is absent or null takes the model's own default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Annotated[list[str], Field(max_length=MAX_STOPS), BeforeValidator(_listed)] | None = None
    stop_token_ids: list[int] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for a request with stream: true")
        return self


class CompletionBody(Body):
    """POST /v1/completions."""

    prompt: Annotated[list[str] | list[int] | list[list[int]], Field(min_length=1), BeforeValidator(_listed)]

    @model_validator(mode="after")
    def _check_number(self) -> Self:
        if len(self.prompts) > MAX_PROMPTS:
            raise ValueError(f"prompt: a request may have {MAX_PROMPTS} prompts, not {len(self.prompts)}")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        ids = [item for item in self.prompt if isinstance(item, int)]
        return [ids] if ids else [item for item in self.prompt if not isinstance(item, int)]

    def sampling(self) -> AnswerOptions:
        """The options that the body gives."""
        return _sampling(self, self.max_tokens)


class ChatBody(Body):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    """Read by `chat/messages.py`; roles may be Chinese (系统, 用户, 助手) or `developer`."""
    max_completion_tokens: int | None = None
    tools: list[ToolBody] | Literal["all"] | None = None
    """Functions offered, matched by name with those the model knows; "all" (our addition) offers all of them."""
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None

    def sampling(self) -> AnswerOptions:
        """The options that the body gives; `max_completion_tokens` goes before its older name."""
        return _sampling(self, self.max_completion_tokens or self.max_tokens)

    def offer(self) -> tuple[list[str] | Literal["all"], ToolChoice]:
        """Names of the tools that may be called, and whether one must be."""
        every = self.tools == "all"
        names = [] if isinstance(self.tools, str) else [tool.function.name for tool in self.tools or ()]
        if not isinstance(self.tool_choice, NamedChoice):
            return "all" if every else names, self.tool_choice or "auto"
        chosen = self.tool_choice.function.name
        if not every and chosen not in names:
            raise RequestError(
                f"tool_choice names {chosen!r}, which is not among the tools", param="tool_choice", code="invalid_value"
            )
        return [chosen], "required"


BodyType = TypeVar("BodyType", bound=Body)


def parse_body(model: type[BodyType], raw: bytes) -> BodyType:
    """The body of a request; RequestError with `param` for whatever is wrong with it."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise RequestError(f"the body must be a JSON object, not {type(data).__name__}", code="invalid_json")
    known = {key: value for key, value in data.items() if not _asks_nothing(key, value, model)}
    for key in known:
        if key not in model.model_fields:
            near = suggest(key, [*model.model_fields, *IGNORED])
            hint = f"did you mean {near!r}?" if near else None
            raise RequestError(f"unknown field {key!r}", param=key, code="unknown_parameter", hint=hint)
    try:
        return model.model_validate(known)
    except ValidationError as error:
        raise _request_error(error) from None


def _sampling(body: Body, max_tokens: int | None) -> AnswerOptions:
    options: AnswerOptions = {}
    if (structure := body.structure()) is not None:
        options["structure"] = structure
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if body.temperature is not None:
        options["temperature"] = body.temperature
    if body.top_p is not None:
        options["top_p"] = body.top_p
    if body.top_k is not None:
        options["top_k"] = body.top_k if body.top_k not in (0, -1) else None  # vLLM's and llama.cpp's "all"
    if body.min_p is not None:
        options["min_p"] = body.min_p
    if body.repetition_penalty is not None:
        options["repetition_penalty"] = body.repetition_penalty
    if body.seed is not None:
        options["seed"] = body.seed
    if body.stop is not None:
        options["stop"] = body.stop
    if body.stop_token_ids is not None:
        options["stop_ids"] = body.stop_token_ids
    return options


def _asks_nothing(key: str, value: object, model: type[Body]) -> bool:
    """True for fields to leave out; RequestError for those that ask for something we do not have."""
    if key in IGNORED or (value is None and key in {*model.model_fields, *NEUTRAL}):
        return True
    if key in model.model_fields or key not in NEUTRAL:
        return False
    if value not in NEUTRAL[key]:
        neutral = " or ".join(json.dumps(allowed) for allowed in NEUTRAL[key])
        raise RequestError(
            f"{key} is not supported: leave it out, or set it to {neutral}", param=key, code="unsupported_parameter"
        )
    return True


def _request_error(error: ValidationError) -> RequestError:
    """The first mistake, in the words of the API."""
    first = error.errors(include_url=False)[0]
    place = ""
    for part in first["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in ("str", "int", "list"):
            place += f".{part}" if place else part
    what = first["msg"].removeprefix("Value error, ")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return RequestError(f"{place}: {what}" if place else what, param=place or None, code=code)
