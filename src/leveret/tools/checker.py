"""Compares the calls a model made with the calls that were asked for, and names the first mistake.

*Exact*: the same tools in the same order with equal arguments; texts are equal after Unicode NFC and without outer
white space, an absent optional argument equals only an absent one. *Lenient*: as exact, but case, punctuation and
spacing in texts do not count, as in the Berkeley Function Calling Leaderboard. Each request that is not exact gets one
error class, the first that applies:

    not_asked     too long for the model's context
    unparsable    the answer is no call at all          wrong_number  too few or too many calls
    missed_call   a call was asked for, none made       wrong_tool    a call goes to another tool
    false_call    none was asked for, one was made      bad_argument  the right tools, an argument is off
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from leveret.chat.messages import ToolCall
from leveret.tools.schema import ToolSet

ErrorClass = Literal[
    "not_asked", "unparsable", "missed_call", "false_call", "wrong_number", "wrong_tool", "bad_argument"
]
ERROR_CLASSES: tuple[ErrorClass, ...] = get_args(ErrorClass)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one answer compares with what was asked."""

    exact: bool
    lenient: bool
    error: ErrorClass | None = None
    """None when exact."""
    tool: str | None = None
    """The expected tool of the call that is wrong."""
    parameter: str | None = None
    """The first argument that is wrong."""


def check(
    predicted: Sequence[ToolCall] | None, expected: Sequence[ToolCall], tools: ToolSet, *, ordered: bool = True
) -> Verdict:
    """Judge the calls of one answer; `predicted` is None when the answer did not parse.

    `tools` gives the order in which arguments are looked at. Without `ordered`, calls may come in any order.
    """
    tool = expected[0].name if expected else None
    if predicted is None:
        return Verdict(exact=False, lenient=False, error="unparsable", tool=tool)
    if len(predicted) != len(expected):
        error: ErrorClass = "missed_call" if not predicted else "wrong_number" if expected else "false_call"
        return Verdict(exact=False, lenient=False, error=error, tool=tool)
    pairs = list(zip(expected, predicted if ordered else _best_order(predicted, expected), strict=True))
    for want, got in pairs:
        if want.name != got.name:
            return Verdict(exact=False, lenient=False, error="wrong_tool", tool=want.name)
    lenient = all(_wrong_argument(want, got, tools, _forgiving) is None for want, got in pairs)
    for want, got in pairs:
        if parameter := _wrong_argument(want, got, tools, normal_text):
            return Verdict(exact=False, lenient=lenient, error="bad_argument", tool=want.name, parameter=parameter)
    return Verdict(exact=True, lenient=True)


def _best_order(predicted: Sequence[ToolCall], expected: Sequence[ToolCall]) -> list[ToolCall]:
    """The predicted calls, each put where it is equal, else nearly equal, else of the same tool, else where room is."""
    placed: list[ToolCall | None] = [None] * len(expected)
    remaining = list(predicted)
    for key in (_exact_key, _lenient_key, lambda call: call.name):
        for place, want in enumerate(expected):
            match = next((call for call in remaining if key(call) == key(want)), None)
            if placed[place] is None and match is not None:
                placed[place] = match
                remaining = [call for call in remaining if call is not match]  # not remove: 1 is equal to true there
    return [call if call is not None else remaining.pop(0) for call in placed]


def _exact_key(call: ToolCall) -> object:
    return _key(call, normal_text)


def _lenient_key(call: ToolCall) -> object:
    return _key(call, _forgiving)


def _key(call: ToolCall, text_form: Callable[[str], str]) -> object:
    present = {name: value for name, value in call.arguments.items() if value is not None}
    return call.name, {name: _comparable(value, text_form) for name, value in present.items()}


def _wrong_argument(want: ToolCall, got: ToolCall, tools: ToolSet, text_form: Callable[[str], str]) -> str | None:
    """The first parameter whose values differ, in the tool's order; then arguments the tool does not have."""
    known = [parameter.name for parameter in tools.get(want.name).parameters] if want.name in tools else []
    for name in dict.fromkeys([*known, *want.arguments, *got.arguments]):
        wanted, given = want.arguments.get(name), got.arguments.get(name)
        if _comparable(wanted, text_form) != _comparable(given, text_form):
            return name
    return None


def _comparable(value: Any, text_form: Callable[[str], str]) -> object:
    """Texts in their form, other values with their kind, so that true is not 1 but 5 is 5.0."""
    return text_form(value) if isinstance(value, str) else (isinstance(value, bool), value)


def normal_text(text: str) -> str:
    """The form in which texts are compared exactly."""
    return unicodedata.normalize("NFC", text).strip()


def _forgiving(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(each for each in folded if unicodedata.category(each)[0] not in "PZC" and each not in "^`")
