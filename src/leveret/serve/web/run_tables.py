"""The tables of a run's page: certificate, evaluation, quantization, figures, from the JSON that the commands left.

A file may be an older version's, or somebody else's: a key that is not there, or a value of the wrong kind, raises, and
the page says so beside the file's name.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Say = Callable[[str], str]
Content = dict[str, Any]

MOST_LAYERS = 8
_QUANTIZATION = ("method", "bits", "bytes_before", "bytes_after", "relative_error", "perplexity_before", "perplexity_after")  # noqa: E501  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers stand to the right. A cell that is `Raw` is HTML already."""
    body = [list(row) for row in rows]
    number = [bool(body) and all(_is_number(row[place]) or row[place] is None for row in body) for place in range(len(head))]  # noqa: E501  # fmt: skip
    marks = [' class="number"' if each else "" for each in number]
    top = "".join(f"<th{mark}>{html.escape(name)}" for name, mark in zip(head, marks, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{mark}>{_cell(cell)}" for cell, mark in zip(row, marks, strict=True)) for row in body
    )
    return f'<div class="card"><table>{f"<tr>{top}" if any(head) else ""}{lines}</table></div>'


class Raw(str):
    """HTML that goes into a cell as it is."""

    __slots__ = ()


def figures_table(outcome: Content, say: Say) -> str:
    """What a training stage measured."""
    rows = [(say(key), value) for key, value in outcome.get("figures", {}).items() if value is not None]
    return table(("", ""), rows) if rows else ""


def certificate(content: Content, say: Say) -> str:
    """Every comparison of forms, with its checks."""
    head = [say(name) for name in ("check", "measured", "bound", "verdict")]
    parts = [f"<p>{_passed(content['passed'], say)}</p>"]
    for each in content["comparisons"]:
        rows = [
            (say(check["name"]), check["measured"], check["bound"], _verdict(check["verdict"], say))
            for check in each["checks"]
        ]
        forms = html.escape(f"{_last(each['first'])} → {_last(each['second'])} ({each['kind']})")
        parts.append(f"<h4>{forms}: {_passed(each['passed'], say)}</h4>{table(head, rows)}")
    return "".join(parts)


def evaluation(content: Content, say: Say) -> str:
    """Tool calls by kind, language, group and tool; bits per byte of texts."""
    parts = []
    for name, entry in content.get("tools", {}).items():
        head = ("", "", "requests", "exact", "95 % interval", "lenient")
        rows = [(say("all"), "", *_shares(entry["overall"]))]
        for cut, label in (("kinds", "kind"), ("languages", "language"), ("groups", "group")):
            rows += [(say(label), say(key), *_shares(tally)) for key, tally in entry.get(cut, {}).items()]
        title = html.escape(f"{say('Tool calls')}: {name}")
        parts.append(f"<h4>{title}</h4>{table(list(map(say, head)), rows)}")
        if tools := entry.get("tools"):
            each_tool = table(
                [say("tool"), *map(say, head[2:])], [(key, *_shares(tally)) for key, tally in tools.items()]
            )
            parts.append(f"<details><summary>{say('each tool')}</summary>{each_tool}</details>")
    if texts := content.get("text"):
        columns = ("text", "documents", "bytes", "tokens", "bits/byte")
        scores = [
            (name, entry["documents"], entry["bytes"], entry["tokens"], entry["bits_per_byte"])
            for name, entry in texts.items()
        ]
        parts.append(f"<h4>{say('Bits per byte')}</h4>{table(list(map(say, columns)), scores)}")
    return "".join(parts)


def quantization(content: Content, say: Say) -> str:
    """What was lost for what was saved, and the layers that lost most."""
    rows = [(say(key.replace("_", " ")), content[key]) for key in _QUANTIZATION if content.get(key) is not None]
    layers = sorted(content.get("layers", []), key=lambda layer: -layer["relative_error"])[:MOST_LAYERS]
    worst = [(layer["name"], layer["relative_error"], layer["bytes_before"], layer["bytes_after"]) for layer in layers]
    head = ("layer", "relative error", "bytes before", "bytes after")
    more = f"<h4>{say('The layers that lost most')}</h4>{table(list(map(say, head)), worst)}" if worst else ""
    return table(("", ""), rows) + more


def forecast(content: Content, say: Say) -> str:
    """`leveret plan` in JSON, where it compared itself with what came."""
    rows = [
        (each["stage"], each["figure"], each["forecast"], each["measured"], each["ratio"])
        for stage in content.get("stages", [])
        for each in stage.get("comparison", [])
    ]
    head = ("stages", "figure", "forecast", "measured", "measured / forecast")
    return table(list(map(say, head)), rows) if rows else ""


def _shares(tally: Content) -> tuple[object, ...]:
    low, high = tally["exact_interval_95"]
    return (
        tally["requests"],
        f"{tally['exact_share']:.1%}",
        f"{low:.1%} – {high:.1%}",
        f"{tally['lenient_share']:.1%}",
    )


def _verdict(verdict: str, say: Say) -> object:
    color = {"same": "good", "different": "bad"}.get(verdict)
    return say(verdict) if color is None else Raw(f'<span class="{color}">{html.escape(say(verdict))}</span>')


def _passed(passed: object, say: Say) -> str:
    return f'<strong class="{"good" if passed else "bad"}">{say("passed" if passed else "failed")}</strong>'


def _last(reference: str) -> str:
    """The end of a long path, which is what tells forms apart."""
    scheme, colon, path = reference.rpartition(":")
    return scheme + colon + "/".join(path.rstrip("/").split("/")[-2:])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if isinstance(value, Raw):
        return value
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if math.isfinite(value) and abs(value) < 1e6 else f"{value:,.0f}"
    return html.escape(str(value))
