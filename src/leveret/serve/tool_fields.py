"""The fields of a chat request that say which functions may be called, and the offer they become.

    tools          [{"type": "function", "function": {"name", "description", "parameters"}}], or our "all"
    tool_choice    "auto" | "none" | "required", a function by name, or several ({"type": "allowed_tools", ...})

/v1/responses writes the same without `function` and `allowed_tools` around it, so clients mix them up.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from leveret.engine.tool_calls import ToolChoice
from leveret.errors import RequestError

MAX_TOOLS = 1024
"""Most functions a chat request may declare; OpenAI's is 128."""

WRAPPED = {
    "function": 'here a function stands inside: {"type": "function", "function": {"name": ...}}',
    "allowed_tools": 'here they stand inside: {"type": "allowed_tools", "allowed_tools": {"mode": ..., "tools": ...}}',
}
"""What /v1/responses writes without its wrapping, and what is said of a wrapping that is missing."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FunctionBody(_Part):
    """A function the client offers: matched by name with those the model was trained on, else put into the prompt."""

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


class AllowedTools(_Part):
    """Some of the functions, of which one may or must be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedChoice]


class AllowedChoice(_Part):
    """`tool_choice` that names several functions."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of_choice(choice: object) -> str:
    """Which of the three a `tool_choice` is meant to be, so that a mistake in it is told of that one."""
    if not isinstance(choice, dict):
        return "Mode"
    return AllowedChoice.__name__ if choice.get("type") == "allowed_tools" else NamedChoice.__name__


ToolChoiceBody = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("Mode")]
    | Annotated[NamedChoice, Tag(NamedChoice.__name__)]
    | Annotated[AllowedChoice, Tag(AllowedChoice.__name__)],
    Discriminator(_kind_of_choice),
]
"""`tool_choice`."""


class ToolFields(BaseModel):
    """What a chat request may say about functions."""

    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | Literal["all"] | None = None
    """Functions offered; "all" (our addition) offers those that the model has a token for."""
    tool_choice: ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None

    @property
    def parallel(self) -> bool:
        """Whether several calls may be made; a function that `tool_choice` names is called once."""
        return self.parallel_tool_calls is not False and not isinstance(self.tool_choice, NamedChoice)

    def offer(self) -> tuple[list[str | dict[str, Any]] | Literal["all"], ToolChoice]:
        """The functions that may be called, as OpenAI declares them, and whether one must be."""
        every = self.tools == "all"
        tools = [] if isinstance(self.tools, str) else [tool.model_dump(exclude_none=True) for tool in self.tools or ()]
        mode: ToolChoice
        match self.tool_choice:
            case NamedChoice():
                chosen, mode = [self.tool_choice.function.name], "required"
            case AllowedChoice(allowed_tools=allowed):
                chosen, mode = list(dict.fromkeys(tool.function.name for tool in allowed.tools)), allowed.mode
            case _:
                return "all" if every else [*tools], self.tool_choice or "auto"
        known = [tool["function"]["name"] for tool in tools]
        if not every and (unknown := [name for name in chosen if name not in known]):
            raise RequestError(
                f"tool_choice names {unknown[0]!r}, which is not among the tools",
                param="tool_choice",
                code="invalid_value",
            )
        if not chosen and mode == "required":
            raise RequestError(
                "tool_choice requires a call and allows no function", param="tool_choice", code="invalid_value"
            )
        return [*chosen] if every else [tool for tool in tools if tool["function"]["name"] in chosen], mode
