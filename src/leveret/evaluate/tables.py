"""The tables of an evaluation, drawn from evaluation.json's content, so a finished run shows the same ones again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from leveret.console import Console
from leveret.tools.checker import ERROR_CLASSES

MOST_SHOWN = 300
"""Characters of a request, and of its calls, that a row of failures shows."""

_CUTS = {"kinds": "kind", "languages": "language", "groups": "group", "tools": "tool"}


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print every table of the report."""
    for name, entry in report["tools"].items():
        console.table(
            f"Tool calls: {name}",
            ["", "", "requests", "exact", "95 % interval", "lenient"],
            list(_share_rows(entry)),
        )
        errors = list(_error_rows(entry))
        if errors:
            console.table(f"Errors: {name}", ["error", *_kinds(entry), "all"], errors)
        if entry["wrong_arguments"]:
            console.table(f"First wrong argument: {name}", ["argument", "times"], entry["wrong_arguments"].items())
    if report["text"]:
        rows = [
            [name, entry["documents"], entry["bytes"], entry["tokens"], f"{entry['bits_per_byte']:.4f}"]
            for name, entry in report["text"].items()
        ]
        console.table("Bits per byte", ["text", "documents", "bytes", "tokens", "bits/byte"], rows)


def show_failures(failures: list[dict[str, Any]], limit: int, console: Console) -> None:
    """Print the first failures, one a row."""
    if failures and limit:
        rows = [
            [
                failure["error"],
                *map(_cut, (failure["query"], _calls(failure["expected"]), _answered(failure))),
            ]
            for failure in failures[:limit]
        ]
        title = f"Failures: {min(limit, len(failures))} of {len(failures)}"
        console.table(title, ["error", "request", "expected", "answered"], rows)


def _share_rows(entry: Mapping[str, Any]) -> Iterator[list[object]]:
    yield ["all", "", *_shares(entry["overall"])]
    for cut, label in _CUTS.items():
        for key, tally in entry[cut].items():
            yield [label, key, *_shares(tally)]


def _shares(tally: Mapping[str, Any]) -> list[object]:
    low, high = tally["exact_interval_95"]
    interval = f"{low:.1%} to {high:.1%}"
    return [tally["requests"], f"{tally['exact_share']:.1%}", interval, f"{tally['lenient_share']:.1%}"]


def _error_rows(entry: Mapping[str, Any]) -> Iterator[list[object]]:
    for error in ERROR_CLASSES:
        total = entry["overall"]["errors"].get(error, 0)
        if total:
            yield [error, *(entry["kinds"][kind]["errors"].get(error, 0) for kind in _kinds(entry)), total]


def _kinds(entry: Mapping[str, Any]) -> list[str]:
    return list(entry["kinds"])


def _cut(text: str) -> str:
    """The beginning of what would fill the screen; failures.jsonl has all of it."""
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def _answered(failure: Mapping[str, Any]) -> str:
    if failure["predicted"] is None:
        return "(not asked)" if failure["error"] == "not_asked" else "(does not parse)"
    return _calls(failure["predicted"])


def _calls(calls: list[dict[str, Any]]) -> str:
    return "; ".join(map(_call, calls)) or "(no tool)"


def _call(call: dict[str, Any]) -> str:
    return f"{call['name']}({', '.join(f'{key}={value!r}' for key, value in call['arguments'].items())})"
