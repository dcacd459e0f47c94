"""What a request offers a model to call: functions with a token of their own, and functions described in the prompt.

A model fine-tuned on a tool set has one functional token a tool and needs no description. A function that it has no
token for, or that a request declares otherwise, is described in the prompt and called in a text dialect
(tools/dialects). A request may hold both kinds; an answer then may as well. Where the chat template lists tools and
writes calls itself, and its dialect is known, the template does it; elsewhere the system message says what there is
and results come back as messages of the user.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from leveret.chat.messages import Message, ToolCall
from leveret.chat.template import ChatTemplate
from leveret.config import suggest
from leveret.engine.structure import Structure
from leveret.engine.tool_calls import OfferedTools, ToolChoice, offered_names, with_calls_rendered
from leveret.errors import RequestError, TemplateError, ToolError
from leveret.tools.dialects import Dialect, dialect_named, dialect_names
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import Parameter, Tool, ToolSet

DEFAULT_DIALECT = "hermes"
"""How functions without a token are called where the chat template knows no way of its own."""

_PROBE = "leveret_probe"
_PROBE_TOOL = {"name": _PROBE, "description": "?", "parameters": {"type": "object", "properties": {}}}
_PROBE_CALL = ToolCall(_PROBE, {"x": "leveret0value"}, id="leveret00")


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A function that the model has no token for."""

    name: str
    schema: Structure
    """Of its arguments."""
    entry: Mapping[str, Any]
    """OpenAI's entry, for the prompt."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What may be called in an answer, and whether something must be."""

    functional: tuple[str, ...] = ()
    """Names of tools with functional tokens."""
    declared: tuple[Declared, ...] = ()
    """Functions that the prompt describes."""
    required: bool = False
    parallel: bool = True

    @property
    def empty(self) -> bool:
        """True when the answer is plain text."""
        return not (self.functional or self.declared)


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a model is told of functions without a token, and writes calls of them."""

    dialect: Dialect
    native: bool
    """Whether the chat template lists the tools and writes calls and results itself."""
    keeps_calls: bool
    """Whether the chat template writes old calls, in whatever way."""


def offer_from(
    tools: OfferedTools, toolset: ToolSet | None, *, tool_choice: ToolChoice = "auto", parallel: bool = True
) -> Offer:
    """The offer of a request. RequestError for a bare name without a token, and for a declaration that is none."""
    _require_known(tools, tool_choice)
    if isinstance(tools, ToolSet):
        tools = tools.to_openai()
    if tools is None or isinstance(tools, str) or tool_choice == "none":
        functional = offered_names(tools, toolset, tool_choice)
        return Offer(functional=functional, required=tool_choice == "required", parallel=parallel)
    own = [isinstance(tool, str) or _is_own(_function(tool, place), toolset) for place, tool in enumerate(tools)]
    declared = tuple(_declared(tool, place) for place, tool in enumerate(tools) if not own[place])
    names = Counter(each.name for each in declared)
    if repeated := [name for name, number in names.items() if number > 1]:
        raise RequestError(f"the tool {repeated[0]!r} is declared twice", param="tools", code="invalid_value")
    rest = [tool for place, tool in enumerate(tools) if own[place]]
    functional = offered_names(rest, toolset, tool_choice if not declared else "auto")
    return Offer(functional=functional, declared=declared, required=tool_choice == "required", parallel=parallel)


def _require_known(tools: object, tool_choice: object) -> None:
    """RequestError for one tool where a list belongs (a text is a list of its letters), and for a strange choice."""
    if isinstance(tools, Mapping) or (isinstance(tools, str) and tools != "all"):
        raise RequestError(
            f"tools is {str(tools)[:40]!r}, one tool and no list", param="tools", code="invalid_value",
            hint="put it in a list, or say 'all'",
        )  # fmt: skip
    if tool_choice not in get_args(ToolChoice):
        raise RequestError(
            f"tool_choice is {tool_choice!r}; it must be one of {', '.join(get_args(ToolChoice))}",
            param="tool_choice", code="invalid_value",
            hint="to have one function called, offer it alone and set tool_choice to required",
        )  # fmt: skip


def writing_of(template: ChatTemplate) -> Writing:
    """How a model with this template writes calls: the template's dialect if it is known, else the default one."""
    question, call = Message("user", "?"), Message("assistant", "", tool_calls=(_PROBE_CALL,))
    entry = [{"type": "function", "function": _PROBE_TOOL}]
    default = Writing(dialect=dialect_named(DEFAULT_DIALECT), native=False, keeps_calls=template.writes_calls)
    try:
        prompt = template.render([question], tools=entry, add_generation_prompt=True).text
        whole = template.render([question, call], tools=entry).text
    except TemplateError:
        return default
    for name in dialect_names() if _PROBE in prompt else ():
        dialect = dialect_named(name)
        begin, end = whole.rfind(dialect.start_marker), whole.rfind(dialect.end_marker)
        try:
            calls = dialect.parse(whole[begin : end + len(dialect.end_marker)])[1] if 0 <= begin < end else []
        except ToolError:
            continue
        if [(call.name, call.arguments) for call in calls] == [(_PROBE, _PROBE_CALL.arguments)]:
            return Writing(dialect=dialect, native=True, keeps_calls=True)
    return default


def conversation_for(
    offer: Offer, writing: Writing, messages: Sequence[Message], functional: FunctionalDialect | None
) -> list[Message]:
    """The messages as the prompt shows them: old calls written out, declarations and results where they belong.

    What was called before is shown whatever is offered now: the last answer of a round of calls is often to call none.
    """
    written = any(not _has_token(call, functional) for message in messages for call in message.tool_calls)
    by_template = functional is None and writing.keeps_calls and not writing.native
    if not offer.declared and (by_template or not written):
        return with_calls_rendered(messages, functional)
    shown: list[Message] = []
    for message, previous in zip(messages, [None, *messages], strict=False):
        if message.tool_calls and all(_has_token(call, functional) for call in message.tool_calls):
            shown += with_calls_rendered([*_queries(messages, message), message], functional)[-1:]
        elif message.tool_calls and not writing.native:
            shown.append(_written_out(message, writing.dialect, functional))
        elif message.role == "tool" and not writing.native:
            result = writing.dialect.result(message.content)
            if previous is not None and previous.role == "tool":  # results in a row are one message
                result = f"{shown.pop().content}\n{result}"
            shown.append(Message("user", result))
        elif message.role == "tool" and message.name is None:
            shown.append(replace(message, name=_name_of_call(messages, message.tool_call_id)))
        else:
            shown.append(message)
    if writing.native:
        return _with_ids(shown)
    return _with_instructions(shown, offer, writing.dialect) if offer.declared else shown


def _function(tool: Any, place: int) -> Mapping[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RequestError(
            f"tools[{place}] must be a name or an OpenAI declaration, not {tool!r}",
            param="tools",
            code="invalid_value",
            hint="leveret.tools.schema: tool_from_function(it).to_openai()" if callable(tool) else None,
        )
    return function


def _is_own(function: Mapping[str, Any], toolset: ToolSet | None) -> bool:
    """Whether it is a tool of the model's, or is meant to be one: a misspelt name declares nothing."""
    if toolset is None:
        return False
    bare = not any(function.get(key) for key in ("description", "parameters", "inputSchema"))
    if function["name"] in toolset.names:
        return _fits(toolset.get(function["name"]), function)
    return bare and suggest(function["name"], toolset.names) is not None


def _fits(tool: Tool, function: Mapping[str, Any]) -> bool:
    """Whether calls as the model learned them are calls of this declaration. One without properties is a name."""
    schema = function.get("parameters") or function.get("inputSchema")
    if not isinstance(schema, Mapping) or not schema.get("properties"):
        return True
    properties, needed = schema["properties"], schema.get("required") or []
    if not isinstance(properties, Mapping) or not isinstance(needed, list):
        return False  # no schema: who reads it says so
    always = [parameter.name for parameter in tool.parameters if parameter.required]
    return all(name in always for name in needed) and all(
        parameter.name in properties and _is_within(parameter, properties[parameter.name])
        for parameter in tool.parameters
    )


def _is_within(parameter: Parameter, schema: Any) -> bool:
    """Whether the values of a parameter are of the type, and among the choices, that a schema names."""
    if not isinstance(schema, Mapping):
        return schema is True
    given, choices = schema.get("type"), schema.get("enum")
    types = given if isinstance(given, list) else [given]
    kinds = {"enum": ("string",), "integer": ("integer", "number")}.get(parameter.type, (parameter.type,))
    if given is not None and not any(kind in types for kind in kinds):
        return False
    if choices is None:
        return True
    return isinstance(choices, list) and bool(parameter.choices) and all(each in choices for each in parameter.choices)


def _declared(tool: Any, place: int) -> Declared:
    function = _function(tool, place)
    schema = function.get("parameters", function.get("inputSchema"))
    param = f"tools[{place}].function.parameters"
    if schema is None or schema == {}:
        schema = {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise RequestError(f"{param} must be a schema of type object", param=param, code="invalid_schema")
    told = {"name": function["name"], "description": function.get("description") or ""}  # some templates need both
    entry = {"type": "function", "function": {**told, "parameters": schema}}
    closed = {"additionalProperties": False} if "properties" in schema else {}  # no others, unless they are invited
    read = Structure.json({"type": "object", **closed, **schema}, param=param)
    return Declared(name=function["name"], schema=read, entry=entry)


def _name_of_call(messages: Sequence[Message], call_id: str | None) -> str | None:
    """The function that a result is of: OpenAI's clients say the id of its call, some templates want the name."""
    calls = [call for message in messages for call in message.tool_calls if call.id is not None]
    return next((call.name for call in reversed(calls) if call.id == call_id), None)


def _queries(messages: Sequence[Message], message: Message) -> list[Message]:
    """The user's last message before this one: strings are spelled as there."""
    before = messages[: next(index for index, each in enumerate(messages) if each is message)]
    return [each for each in before if each.role == "user"][-1:]


def _has_token(call: ToolCall, functional: FunctionalDialect | None) -> bool:
    """Whether a call can be written with a functional token: a request may declare a tool of that name otherwise."""
    if functional is None or call.name not in functional.tools.names:
        return False
    try:
        functional.tools.get(call.name).validate(call.arguments)
    except ToolError:
        return False
    return True


def _written_out(message: Message, dialect: Dialect, functional: FunctionalDialect | None) -> Message:
    """A message with its calls as text; calls of tools with a token are written with it."""
    parts = [message.content] if message.content and functional is None else []
    own = [call for call in message.tool_calls if _has_token(call, functional)]
    others = [call for call in message.tool_calls if not _has_token(call, functional)]
    if functional is not None and any(functional.without_tokens(call.name) != call.name for call in others):
        raise RequestError("a tool's name holds a special token", param="messages", code="invalid_value")
    try:
        parts += [] if functional is None or not own else [functional.render(own)]
    except ToolError as error:
        raise RequestError(error.message, param="messages", code="invalid_value", hint=error.hint) from None
    written = dialect.between.join(
        f"{dialect.opening(call.name)}{_arguments(call, functional)}{dialect.closing}" for call in others
    )
    parts.append(f"{dialect.before}{written}{dialect.after}")
    return replace(message, content="\n".join(parts), tool_calls=(), trusted=functional is not None)


def _arguments(call: ToolCall, functional: FunctionalDialect | None) -> str:
    """The arguments as JSON; in a message whose special tokens are read as such, none of them spells one."""
    text = json.dumps(call.arguments, ensure_ascii=False)
    return text if functional is None else functional.without_tokens(text)


def _with_ids(messages: list[Message]) -> list[Message]:
    """The messages with an id for each call and its result where they have none: some templates want them."""
    shown: list[Message] = []
    waiting: list[str] = []
    number = 0
    for message in messages:
        if message.tool_calls:
            named = [
                replace(call, id=call.id or f"call{number + place:05}") for place, call in enumerate(message.tool_calls)
            ]
            number += len(named)
            waiting = [call.id for call in named if call.id is not None]
            message = replace(message, tool_calls=tuple(named))
        elif message.role == "tool" and waiting:
            own = waiting.pop(0)
            message = replace(message, tool_call_id=message.tool_call_id or own)
        shown.append(message)
    return shown


def _with_instructions(messages: list[Message], offer: Offer, dialect: Dialect) -> list[Message]:
    told = dialect.instructions([declared.entry for declared in offer.declared])
    if messages and messages[0].role == "system":
        return [replace(messages[0], content=f"{messages[0].content}\n\n{told}".strip()), *messages[1:]]
    return [Message("system", told), *messages]
