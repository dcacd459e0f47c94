"""Requests with the calls they ask for: one JSON object a line, `{"query": "...", "calls": [{"name", "arguments"}]}`.

An empty list of calls means that no tool fits. This is the format of training data, of held-out sets and of the
requests that people write by hand. A `group` labels a line for the score tables; any other key is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.chat.messages import ToolCall, checked_text
from leveret.data.files import read_text
from leveret.errors import DataError, RequestError, ToolError
from leveret.paths import atomic_write
from leveret.tools.schema import ToolSet

_ONE_CALL = 'one call is {"name": "...", "arguments": {...}}'


@dataclass(frozen=True, kw_only=True)
class ToolRequest:
    """What a person typed, and the calls that answer it."""

    query: str
    calls: tuple[ToolCall, ...]
    group: str | None = None
    """A name for the kind of request, if its file gives one."""


def read_requests(path: str | Path, tools: ToolSet | None = None) -> list[ToolRequest]:
    """Read a JSONL file of requests (also .gz, .zst); with `tools`, every call must fit its schema.

    Raises DataError with the file and line of the first mistake, and for a file without requests.
    """
    path = Path(path)
    return [read_request(path, number, line, tools) for number, line in request_lines(path)]


def request_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file of requests that hold one, each with its number. Raises DataError if there is none."""
    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise DataError("holds no requests", path=path, hint='one line is {"query": "...", "calls": [...]}')
    return numbered


def write_requests(path: str | Path, requests: Iterable[ToolRequest]) -> None:
    """Write requests as `read_requests` reads them."""
    atomic_write(path, "".join(json.dumps(_to_json(request), ensure_ascii=False) + "\n" for request in requests))


def _to_json(request: ToolRequest) -> dict[str, Any]:
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in request.calls]
    return {"query": request.query, "calls": calls} | ({"group": request.group} if request.group else {})


def read_request(path: Path, number: int, line: str, tools: ToolSet | None) -> ToolRequest:
    """The request of one line. Raises DataError with the file and the line's number."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", path=path, line=number) from None
    if not isinstance(entry, dict) or not isinstance(entry.get("query"), str) or not entry["query"].strip():
        raise DataError('needs a "query" that is a text', path=path, line=number)
    if not isinstance(entry.get("calls"), list):
        raise DataError('needs "calls", a list (empty: no tool fits)', path=path, line=number)
    try:
        checked_text(json.dumps(entry, ensure_ascii=False), "the line, read as JSON,")
        json.dumps(entry["calls"], allow_nan=False)  # Python reads NaN, JSON has none
        calls = tuple(_read_call(call, tools) for call in entry["calls"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", path=path, line=number) from None
    except (RequestError, ToolError) as error:
        raise DataError(error.message, path=path, line=number, hint=error.hint) from None
    group = entry.get("group")
    if not isinstance(group, str | None):
        raise DataError(f'"group" must be a text, not {group!r}', path=path, line=number)
    return ToolRequest(query=entry["query"], calls=calls, group=group)


def _read_call(entry: Any, tools: ToolSet | None) -> ToolCall:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise ToolError('a call needs a "name"', hint=_ONE_CALL)
    if "arguments" not in entry and (near := [key for key, value in entry.items() if isinstance(value, Mapping)]):
        raise ToolError(f"the arguments of {entry['name']} stand under {near[0]!r}", hint=_ONE_CALL)
    arguments = entry.get("arguments", {})
    if not isinstance(arguments, Mapping):
        raise ToolError(f'"arguments" of {entry["name"]} must be an object, not {arguments!r}')
    if tools is not None:
        arguments = tools.get(entry["name"]).validate(arguments)
    return ToolCall(name=entry["name"], arguments=dict(arguments))
