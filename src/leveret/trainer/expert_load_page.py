"""The picture of the experts' load on the page of a run: a row for each layer, a field for each expert.

The fuller a field, the more tokens choose its expert: half full is an even share. Fields of experts that get nearly
nothing have a border of another color. Pointing at a field shows its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leveret.trainer.expert_load import IDLE_LOAD

KEY = "expert_load"
_WIDTH, _LEFT, _BOTTOM, _GAP = 560, 62, 22, 3
_ROW_HEIGHT = 18
_MOST_NUMBERS = 16  # fields in a row with their number written in


def load_figure(lines: Sequence[dict[str, Any]]) -> str:
    """A figure of the last load in the record; nothing when there is none, as in a model without experts."""
    last = next((line for line in reversed(lines) if line.get(KEY)), None)
    if last is None:
        return ""
    layers: list[list[float]] = last[KEY]
    title = f"load of each expert after step {last['step']:,} (1 is an even share)"
    height = len(layers) * _ROW_HEIGHT + _BOTTOM
    rows = "".join(_row(layer, loads) for layer, loads in enumerate(layers))
    width = (_WIDTH - _LEFT) / len(layers[0])
    numbers = "".join(
        f'<text x="{_LEFT + (expert + 0.5) * width:.1f}" y="{height - 6}" text-anchor="middle">{expert}</text>'
        for expert in range(0, len(layers[0]), -(-len(layers[0]) // _MOST_NUMBERS))
    )
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">{rows}{numbers}</svg></figure>'
    )


def _row(layer: int, loads: Sequence[float]) -> str:
    top, width = layer * _ROW_HEIGHT, (_WIDTH - _LEFT) / len(loads)
    parts = [f'<text x="{_LEFT - 8}" y="{top + 12}" text-anchor="end">layer {layer}</text>']
    for expert, load in enumerate(loads):
        idle = ' class="idle"' if load < IDLE_LOAD else ""
        x = _LEFT + expert * width
        parts.append(
            f'<rect{idle} x="{x:.1f}" y="{top}" width="{width - _GAP:.1f}" height="{_ROW_HEIGHT - _GAP}" '
            f'fill-opacity="{min(load / 2, 1):.2f}"><title>layer {layer}, expert {expert}: {load:.2f}</title></rect>'
        )
        if len(loads) <= _MOST_NUMBERS:
            parts.append(
                f'<text class="field" x="{x + (width - _GAP) / 2:.1f}" y="{top + 12}" text-anchor="middle">'
                f"{load:.2f}</text>"
            )
    return "".join(parts)
