"""What people leave out in the later part of a combined request: "brightness to 40 and the volume to 55".

    continuations:
      set_volume:     {after: [set_brightness], say: ["the volume to {level}"]}
      toggle_setting: {after: [toggle_setting], say: ["{setting}"]}        "turn off the wifi, then the bluetooth"

Such a wording stands only behind a call of one of the tools under `after`. Required arguments that it does not fill are
those of that call: the bluetooth is turned off because the wifi was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leveret.errors import ToolError
from leveret.tools.phrases import Pattern
from leveret.tools.schema import Tool, ToolSet
from leveret.tools.wordings import Wordings

_KEYS = {"after", "say"}


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Wordings of a tool that lean on the call before."""

    after: tuple[str, ...]
    """The tools whose calls they may follow."""
    wordings: Wordings


def lines_of(entry: Any, where: str) -> tuple[tuple[str, ...], Sequence[str]]:
    """The tools and the lines of one entry of the section. Raises ToolError for anything but `after` and `say`."""
    if not isinstance(entry, Mapping) or set(entry) != _KEYS or not isinstance(entry["after"], list):
        raise ToolError(f"{where}: must be {{after: [tools], say: [lines]}}, not {entry!r}")
    return tuple(map(str, entry["after"])), entry["say"]


def check_followed(tool: Tool, after: Sequence[str], patterns: Sequence[Pattern], tools: ToolSet, where: str) -> None:
    """Raise ToolError unless every tool under `after` has the required arguments that a pattern leaves out."""
    for name in after:
        if name not in tools:
            raise ToolError(f"{where}: there is no tool {name!r}", hint=f"the tools are: {', '.join(tools.names)}")
        there = {parameter.name: parameter.type for parameter in tools.get(name).parameters if parameter.required}
        for pattern in patterns:
            for parameter in tool.parameters:
                filled = parameter.name in pattern.fixed or all(parameter.name in way for way in pattern.ways)
                if parameter.required and not filled and there.get(parameter.name) != parameter.type:
                    raise ToolError(
                        f"{where}: nothing fills {parameter.name!r}, and a call of {name} has none, in: {pattern.text}",
                        hint="fill it by a slot or after =>, or leave that tool out of after",
                    )
