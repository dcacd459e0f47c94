"""JSON respelled while it is being written: what comes in any spelling goes out as `json.dumps` writes it.

    {"a" : 0e27,"b":"\\u000a\\/"}        what a model may write
    {"a": 0.0, "b": "\\n/"}              what a client is sent, piece by piece

So a call that is streamed has the very text of a call that is sent whole, however the model has spelled it. A number
is given out once its end is there; one beyond all measure (9e999) is the largest there is, since what holds an infinity
is no JSON. Half a character (an escaped lone surrogate), which no encoding can write, is U+FFFD. Text that is no JSON
comes out as something: whoever reads the whole refuses it.
"""

from __future__ import annotations

import json
import re
import sys

_SPACE = re.compile(r"[ \t\r\n]+")
_SCALAR = re.compile(r'[^ \t\r\n"{}\[\],:]+')
_PLAIN = re.compile(r'[^"\\]+')
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^u])", re.DOTALL)
_HIGH_HALF = re.compile(r"\\u[dD][89abAB]..(?:\\(?:u[0-9a-fA-F]{0,3})?)?")
_LONE = re.compile("[\ud800-\udfff]")
_SEPARATORS = {",": ", ", ":": ": "}


class JsonSpelling:
    """Takes the JSON of one value apart as it grows."""

    def __init__(self) -> None:
        self._held = ""
        self._in_string = False

    def push(self, text: str) -> str:
        """What became certain with more of the text."""
        held, position = self._held + text, 0
        certain: list[str] = []
        while position < len(held) and (end := self._step(held, position, certain)) is not None:
            position = end
        self._held = held[position:]
        return "".join(certain)

    def _step(self, held: str, position: int, certain: list[str]) -> int | None:
        """Write out what stands at a position; where that ends, None when more must come first."""
        if held[position] == '"':
            self._in_string = not self._in_string
            certain.append('"')
            return position + 1
        if self._in_string:
            unit = _PLAIN.match(held, position) or _ESCAPE.match(held, position)
            if unit is None or _HIGH_HALF.fullmatch(held, position):
                return None
            certain.append(_text(unit[0]))
            return unit.end()
        if space := _SPACE.match(held, position):
            return space.end()
        scalar = _SCALAR.match(held, position)
        if scalar is None:
            certain.append(_SEPARATORS.get(held[position], held[position]))
            return position + 1
        if scalar.end() == len(held):
            return None
        certain.append(_scalar(scalar[0]))
        return scalar.end()


def finite_number(text: str) -> float:
    """A number of JSON; the largest there is for one beyond it."""
    return max(-sys.float_info.max, min(sys.float_info.max, float(text)))


def _scalar(text: str) -> str:
    try:
        return json.dumps(json.loads(text, parse_float=finite_number))
    except ValueError:
        return text


def _text(text: str) -> str:
    try:
        meant = json.loads(f'"{text}"', strict=False)
    except ValueError:
        return text
    return json.dumps(_LONE.sub("\ufffd", meant), ensure_ascii=False)[1:-1]
