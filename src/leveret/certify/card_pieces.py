"""Small pieces of Markdown that the card's two languages share."""

from __future__ import annotations

from collections.abc import Sequence

from leveret.certify.card_facts import StageFacts, number

BARS = "▁▂▃▄▅▆▇█"
CURVE_POINTS = 24
"""Points of a curve in the card."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [_line(columns), "|" + "---|" * len(columns), *(_line(row) for row in rows)]
    return "\n".join(lines)


def details(summary: str, body: str) -> str:
    """A part that is folded away until clicked."""
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def curve_line(stage: StageFacts, key: str) -> str:
    """`pretrain loss over 900 steps: 9.01 █▅▃▂▁ 2.31`; empty when the stage has no such curve."""
    points = [(line["step"], line[key]) for line in stage.curve if isinstance(line.get(key), int | float)]
    if len(points) < 2:
        return ""
    values = [value for _, value in points]
    return (
        f"{stage.name} {key.replace('_', ' ')} over {points[-1][0]:,} steps: "
        f"{number(values[0])} {sparkline(values)} {number(values[-1])}"
    )


def sparkline(values: Sequence[float]) -> str:
    """At most CURVE_POINTS values, evenly picked, as bars between the lowest and the highest."""
    count = min(CURVE_POINTS, len(values))
    picked = [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]
    low, span = min(picked), max(picked) - min(picked)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] if span else BARS[0] for value in picked)


def duration(seconds: float) -> str:
    """Seconds or minutes, rounded."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
