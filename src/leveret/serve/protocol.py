"""The bodies of the OpenAI API that this server understands, and the refusal, by name, of all it does not.

Three kinds of fields:

* those of the models below are obeyed;
* `IGNORED` ones are accepted and change nothing, because clients send them and they ask for nothing we could answer;
* `NEUTRAL` ones are accepted only with the value that asks for nothing (`suffix: ""`); anything else is refused, since
  silently answering another question is worse than an error.

Any other name is refused with the nearest known one, as OpenAI does: vLLM takes a misspelt `temprature` and ignores it.

Every mistake is a RequestError whose `param` is the field, with list places counted from 0 (`messages[2].role`).
Source: https://platform.openai.com/docs/api-reference and vLLM's documentation of its own parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from leveret.config import suggest
from leveret.engine.prompting import PromptShape
from leveret.engine.request import MAX_LOGPROBS
from leveret.engine.structure import AnswerOptions
from leveret.errors import RequestError
from leveret.serve.sampling_fields import SamplingFields, listed
from leveret.serve.structured import JsonSchemaBody, ResponseFormat, StructuredFields, StructuredOutputs
from leveret.serve.tool_fields import WRAPPED, AllowedTools, FunctionBody, ToolBody, ToolFields
from leveret.serve.writable import MAY_BE_UNWRITABLE, check_writable

IGNORED = frozenset(
    [
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "cache_prompt", "cache_salt", "priority", "request_id"),
        "spaces_between_special_tokens",
    ]
)
"""Accepted, and nothing depends on them."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none",),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "min_tokens": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "early_stopping": (False,),
    "include_stop_str_in_output": (False,),
    "prompt_logprobs": (0,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "add_special_tokens": (),
    "detokenize": (True,),
}
"""Accepted only with one of these values, or null."""

OTHER_DOORS = {"messages": "a conversation goes to /v1/chat/completions", "prompt": "a text goes to /v1/completions"}
"""Where a field belongs that another endpoint knows."""

MAX_CHOICES = 128
"""Most choices (`n`) a request may ask for."""

MAX_PROMPTS = 128
"""Most prompts a completion request may have."""

MAX_TEXT_LOGPROBS = 20
"""Most alternatives a completion request may ask for; OpenAI's is 5."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Part):
    """Options of a streamed answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    """vLLM's: with `include_usage`, every chunk has the usage of its choice so far."""
    include_obfuscation: bool = False


class Body(SamplingFields, StructuredFields):
    """What both generating endpoints take. A field that is absent or null takes the model's own default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @property
    def num_answers(self) -> int:
        """How many answers have to be generated."""
        return self.n or 1

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer, by whichever name they were given."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives are wanted with each token's log probability; None when not even that is."""
        return None

    def options(self) -> AnswerOptions:
        """How the answer is sampled and what form it has."""
        options = AnswerOptions(logprobs=self.num_logprobs)
        options.update(self.sampling())  # type: ignore[typeddict-item]  # sampling options are answer options
        if (structure := self.structure()) is not None:
            options["structure"] = structure
        if self.most_tokens is not None:
            options["max_tokens"] = self.most_tokens
        return options

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: it is only for a request with stream: true")
        return self


class CompletionBody(Body):
    """POST /v1/completions."""

    prompt: Annotated[list[str] | list[int] | list[list[int]], Field(min_length=1), BeforeValidator(listed)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TEXT_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _check_number(self) -> Self:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError(f"best_of: {self.best_of} answers cannot hold the {self.n} best")
        if self.best_of is not None and self.best_of > (self.n or 1) and self.stream:
            raise ValueError("best_of: the best cannot be known while it is streamed")
        if len(self.prompts) > MAX_PROMPTS:
            raise ValueError(f"prompt: a request may have {MAX_PROMPTS} prompts, not {len(self.prompts)}")
        return self

    @property
    def num_answers(self) -> int:
        """How many answers have to be generated."""
        return len(self.prompts) * max(self.n or 1, self.best_of or 1)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        ids = [item for item in self.prompt if isinstance(item, int)]
        return [ids] if ids else [item for item in self.prompt if not isinstance(item, int)]

    @property
    def num_logprobs(self) -> int | None:
        """OpenAI's `logprobs`, which is a number here."""
        return self.logprobs


class ChatBody(Body, ToolFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    """Read by `chat/messages.py`; roles may be Chinese (系统, 用户, 助手) or `developer`."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: it needs logprobs: true")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message: a turn cannot be continued and a new one opened")
        return self

    @property
    def most_tokens(self) -> int | None:
        """`max_completion_tokens` goes before its older name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """OpenAI's `logprobs` and `top_logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def shape(self) -> PromptShape:
        """Where the prompt ends."""
        return PromptShape(
            add_generation_prompt=self.add_generation_prompt is not False,
            continue_final_message=bool(self.continue_final_message),
            variables=self.chat_template_kwargs or {},
        )


class AdapterBody(_Part):
    """POST /v1/load_lora_adapter and /v1/unload_lora_adapter, with vLLM's names."""

    lora_name: str
    lora_path: str | None = None


_PARTS = (FunctionBody, ToolBody, AllowedTools, StreamOptions, ResponseFormat, JsonSchemaBody, StructuredOutputs)
_INNER_NAMES = frozenset(field.alias or name for part in _PARTS for name, field in part.model_fields.items())
"""Names of fields within fields, to suggest one."""

BodyType = TypeVar("BodyType", bound=Body)
ObjectType = TypeVar("ObjectType", bound=BaseModel)


def parse_object(model: type[ObjectType], raw: bytes) -> ObjectType:
    """A small object; RequestError for whatever is wrong with it."""
    return _validated(model, _json_object(raw))


def parse_body(model: type[BodyType], raw: bytes) -> BodyType:
    """The body of a request; RequestError with `param` for whatever is wrong with it."""
    data = _json_object(raw)
    known = {key: value for key, value in data.items() if not _asks_nothing(key, value, model)}
    for key in known:
        if key not in model.model_fields:
            raise _unknown_field(key, key, [*model.model_fields, *IGNORED])
    return _validated(model, known)


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode(json.detect_encoding(raw))
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise RequestError(f"the body must be a JSON object, not {type(data).__name__}", code="invalid_json")
    if MAY_BE_UNWRITABLE.search(text):
        check_writable(data)
    return data


def _validated(model: type[ObjectType], data: dict[str, Any]) -> ObjectType:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _request_error(error) from None


def _unknown_field(name: str, place: str, known: Iterable[str]) -> RequestError:
    near = suggest(name, known)
    hint = OTHER_DOORS.get(place) or (f"did you mean {near!r}?" if near else None)
    return RequestError(f"unknown field {place!r}", param=place, code="unknown_parameter", hint=hint)


def _asks_nothing(key: str, value: object, model: type[Body]) -> bool:
    """True for fields to leave out; RequestError for those that ask for something we do not have."""
    if key in IGNORED or (value is None and key in {*model.model_fields, *NEUTRAL}):
        return True
    if key in model.model_fields or key not in NEUTRAL:
        return False
    if value not in NEUTRAL[key]:
        neutral = " or ".join(json.dumps(allowed) for allowed in NEUTRAL[key])
        instead = f", or set it to {neutral}" if neutral else ""
        raise RequestError(f"{key} is not supported: leave it out{instead}", param=key, code="unsupported_parameter")
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
    if first["type"] == "extra_forbidden":
        return _unknown_field(str(first["loc"][-1]), place, _INNER_NAMES)
    what = first["msg"].removeprefix("Value error, ")
    named, colon, rest = what.partition(": ")
    if not place and colon and named.isidentifier():  # a check of several fields names the one to change
        place, what = named, rest
    missing = first["type"] == "missing"
    code = "missing_required_parameter" if missing else "invalid_value"
    hint = WRAPPED.get(str(first["loc"][-1])) if missing else None
    return RequestError(f"{place}: {what}" if place else what, param=place or None, code=code, hint=hint)
