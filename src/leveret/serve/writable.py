"""What Python reads in a body though no JSON can hold it (half a character, NaN, an infinity) is refused by its place.

Half a character (a lone surrogate, written as an escape) cannot be encoded: neither a prompt nor an answer could hold
it. Numbers that are not finite (`NaN`, `1e999`) would be written into prompts and schemas as what is no JSON. A body is
searched only where its text looks like it: token ids come by the hundred thousand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from leveret.errors import RequestError

MAY_BE_UNWRITABLE = re.compile(r"\\u[dD][89a-fA-F]|NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{308}")
"""Found in the text of every body that holds such a value, and of few others."""


def check_writable(body: dict[str, Any]) -> None:
    """RequestError that names the place of a value which cannot be written as JSON."""
    waiting: list[tuple[str, Any]] = [("", body)]  # no recursion: a body may be nested as deep as Python reads
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str) and not _can_be_encoded(value):
            raise _refusal(place, "holds half a character (a lone surrogate)")
        if isinstance(value, float) and not math.isfinite(value):
            raise _refusal(place, f"is {value}, which is no number of JSON")
        waiting += reversed([*_inside(place, value)])


def _inside(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, by place: the keys of an object have the place of the object."""
    if isinstance(value, list):
        yield from ((f"{place}[{index}]", each) for index, each in enumerate(value))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield place, key
            yield f"{place}.{key}".removeprefix("."), each


def _can_be_encoded(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(place: str, what: str) -> RequestError:
    return RequestError(f"{place or 'a field'} {what}", param=place or None, code="invalid_value")
