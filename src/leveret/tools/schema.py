"""Tool sets and where they come from: OpenAI `tools` lists, JSON Schema, MCP, Python functions, tools.json.

All of them become the same `Tool`. Our five flat types cover what a phone or a service function takes; a schema that
cannot be expressed (arrays, nested objects, unions, `multipleOf` ...) is refused with the tool and the parameter
named, because a constraint that is silently dropped is a wrong call later. Read beyond the letter of JSON Schema:

* `"type": ["string", "null"]` and `anyOf` with null: an optional argument (pydantic writes these);
* `anyOf` of a string with a format and an enum: the format with extra words, e.g. a date or "today";
* `$ref` into `$defs` of the same schema; `const` as an enum of one;
* `"x-extractive": true`: the value is copied from the request.

`tools.json` in a model directory is `{"tools": [OpenAI entries], "functional_tokens": {"<api_0>": name, ...}}`: the
map that says which functional token of this model means which tool.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leveret.errors import ToolError
from leveret.paths import atomic_write
from leveret.tools.parameter_schema import read_parameter
from leveret.tools.signature import tool_from_function
from leveret.tools.tool import FORMATS, Parameter, Tool

__all__ = ["FORMATS", "Parameter", "Tool", "ToolSet", "declarations", "tool_from_function", "tools_from_json"]

FILE_NAME = "tools.json"


class ToolSet:
    """Tools in a fixed order with unique names; the order decides the functional tokens."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = tuple(tools)
        self._index = {tool.name: index for index, tool in enumerate(self._tools)}
        if not self._tools:
            raise ToolError("a tool set needs at least one tool")
        if len(self._index) < len(self._tools):
            names = [tool.name for tool in self._tools]
            raise ToolError(f"tool {next(name for name in names if names.count(name) > 1)!r} is declared twice")

    def __len__(self) -> int:
        return len(self._tools)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToolSet) and self._tools == other._tools

    def __hash__(self) -> int:
        return hash(self._tools)

    def __getitem__(self, index: int) -> Tool:
        return self._tools[index]

    def index(self, name: str) -> int:
        """The number of a tool; ToolError when it is not here."""
        if name not in self._index:
            raise ToolError(f"unknown tool {name!r}", hint=f"the tools are: {', '.join(self.names)}")
        return self._index[name]

    def get(self, name: str) -> Tool:
        """The tool of that name; ToolError when it is not here."""
        return self._tools[self.index(name)]

    @property
    def names(self) -> tuple[str, ...]:
        """Tool names in order."""
        return tuple(self._index)

    @property
    def functional_tokens(self) -> tuple[str, ...]:
        """`<api_0>`, `<api_1>`, ...: the special token of each tool, in order."""
        return tuple(f"<api_{index}>" for index in range(len(self._tools)))

    def to_openai(self) -> list[dict[str, Any]]:
        """The declarations as OpenAI's `tools` list."""
        return [tool.to_openai() for tool in self._tools]

    def save(self, path: str | Path) -> Path:
        """Write `tools.json` (into `path` if that is a directory) with the functional token map; returns the file."""
        file = _tools_file(path)
        tokens = dict(zip(self.functional_tokens, self.names, strict=True))
        content = {"tools": self.to_openai(), "functional_tokens": tokens}
        atomic_write(file, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
        return file

    @classmethod
    def load(cls, path: str | Path) -> ToolSet:
        """Read a `tools.json` or the one in a directory; ToolError when it is missing or its token map is another."""
        file = _tools_file(path)
        content = _read_json(file)
        try:
            tools = cls(tools_from_json(content))
        except ToolError as error:
            raise ToolError(f"{file}: {error.message}", hint=error.hint) from None
        recorded = content.get("functional_tokens") if isinstance(content, dict) else None
        if recorded is not None and recorded != dict(zip(tools.functional_tokens, tools.names, strict=True)):
            raise ToolError(
                f"{file}: functional_tokens do not match the order of the tools",
                hint="the model was trained with the recorded map: put the tools back in that order",
            )
        return tools


def tools_from_json(source: str | Path | Sequence[Any] | Mapping[str, Any]) -> list[Tool]:
    """Tools from a JSON file, or from its content: a list of declarations, one declaration, or {"tools": [...]}.

    The answer of an MCP server to `tools/list` is read as it is, with or without its envelope. Each may be an OpenAI
    entry ({"type": "function", "function": {...}}), its inner object, or an MCP tool ({"name", "inputSchema"}).
    Raises ToolError naming the tool and the parameter it cannot express.
    """
    content = declarations(source)
    return [_read_tool(entry, number) for number, entry in enumerate(content, start=1)]


def declarations(source: str | Path | Sequence[Any] | Mapping[str, Any]) -> Sequence[Any]:
    """The declarations in a JSON file or its content, as they are; they may hold more than a `Tool` can express."""
    content = _read_json(Path(source)) if isinstance(source, str | Path) else source
    if isinstance(content, Mapping):
        content = content["result"] if isinstance(content.get("result"), Mapping) else content  # MCP's tools/list
        content = content.get("tools", [content])
    if isinstance(content, str) or not isinstance(content, Sequence):
        raise ToolError(f"tool declarations must be a list, not {type(content).__name__}")
    return content


def _read_tool(entry: Any, number: int) -> Tool:
    if not isinstance(entry, Mapping):
        raise ToolError(f"tool {number} must be a JSON object, not {type(entry).__name__}")
    function = entry.get("function", entry)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ToolError(f"tool {number} has no name", hint='write {"name": ..., "parameters": {...}}')
    schema = function.get("parameters", function.get("inputSchema")) or {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise ToolError(f"tool {name}: parameters must be a schema of type object")
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    definitions = schema.get("$defs") or schema.get("definitions") or {}
    for keyword, part in (("properties", properties), ("$defs", definitions)):
        if not isinstance(part, Mapping):
            raise ToolError(f"tool {name}: {keyword} must be an object of schemas, not {part!r}")
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise ToolError(f"tool {name}: required must be a list of names, not {required!r}")
    for missing in set(required) - set(properties):
        raise ToolError(f"tool {name}: required parameter {missing!r} is not among its properties")
    parameters = tuple(
        read_parameter(name, key, value, required=key in required, definitions=definitions)
        for key, value in properties.items()
    )
    return Tool(name=name, description=str(function.get("description") or ""), parameters=parameters)


def _tools_file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" or path.is_file() else path / FILE_NAME


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ToolError(f"{file} does not exist", hint="this model has no tool set, or the path is wrong") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ToolError(f"{file} is not JSON: {error}") from None
