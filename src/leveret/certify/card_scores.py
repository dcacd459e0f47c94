"""The scores of an evaluation.json, each as a measure and a figure with its size, for the card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CUTS = ("kinds", "languages")
"""Which of the tables of tool calls are in the card; evaluation.json has more."""


def scores_of(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Measure -> figure, in the order of the file; empty when the file is not one that `leveret evaluate` wrote."""
    return dict([*_tool_scores(evaluation.get("tools")), *_text_scores(evaluation.get("text"))])


def _tool_scores(files: Any) -> Iterator[tuple[str, str]]:
    for name, entry in files.items() if isinstance(files, Mapping) else ():
        yield f"{name}: exact tool calls", _share(entry["overall"])
        for cut in CUTS:
            for kind, tally in entry.get(cut, {}).items():
                yield f"{name}: exact tool calls, {kind}", _share(tally)
        errors = entry["overall"].get("errors", {})
        yield f"{name}: answers that do not parse", str(errors.get("unparsable", 0))
        if unasked := errors.get("not_asked"):
            yield f"{name}: requests that the model could not be asked", str(unasked)


def _text_scores(files: Any) -> Iterator[tuple[str, str]]:
    for name, entry in files.items() if isinstance(files, Mapping) else ():
        yield f"{name}: bits per byte", f"{entry['bits_per_byte']:.4f} ({entry['bytes']:,} bytes)"


def _share(tally: Mapping[str, Any]) -> str:
    low, high = tally["exact_interval_95"]
    return f"{tally['exact_share']:.1%} of {tally['requests']:,} (95 %: {low:.1%} to {high:.1%})"
