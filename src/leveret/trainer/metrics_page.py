"""The page of a run: its curves as SVG in one self-contained HTML file.

No script, no network, no library: lines are drawn in Python, so the page opens anywhere, also while the run goes
on (it then reloads itself every few seconds), in a light or a dark room. Long runs are thinned to a few hundred
points, each the mean of its neighbours; the table below has the last exact values.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leveret.trainer.expert_load_page import load_figure

_WIDTH, _HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 30
_MOST_POINTS = 400

STYLE = """
:root { color-scheme: light dark; --ink:#1c2330; --soft:#667085; --line:#e4e7ec; --card:#fff; --page:#f7f8fa;
  --a:#2563eb; --b:#d97706; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ef; --soft:#98a2b3; --line:#2c3442; --card:#171c26;
  --page:#0f131a; --a:#6ea8fe; --b:#f5b454; } }
body { margin:0; padding:24px; background:var(--page); color:var(--ink); font:15px/1.5 system-ui, sans-serif; }
h1 { font-size:20px; margin:0 0 4px; } p { margin:0 0 16px; color:var(--soft); }
main { display:grid; grid-template-columns:repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap:16px; }
figure { margin:0; padding:14px; background:var(--card); border:1px solid var(--line); border-radius:10px; }
figcaption { font-weight:600; display:flex; gap:16px; flex-wrap:wrap; } figcaption span { font-weight:400; }
figcaption .a { color:var(--a); } figcaption .b { color:var(--b); }
svg { width:100%; height:auto; display:block; } text { fill:var(--soft); font:11px system-ui, sans-serif; }
.grid { stroke:var(--line); } .a { stroke:var(--a); } .b { stroke:var(--b); }
polyline { fill:none; stroke-width:1.8; stroke-linejoin:round; } circle { stroke:none; }
circle.b { fill:var(--b); } circle.a { fill:var(--a); }
rect { fill:var(--a); stroke:var(--line); } rect.idle { stroke:var(--b); stroke-width:2; }
text.field { fill:var(--ink); pointer-events:none; }
.track { height:6px; border-radius:3px; background:var(--line); margin:0 0 20px; }
.track div { height:6px; border-radius:3px; background:var(--a); }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; } td { padding:2px 18px 2px 0; }
"""


@dataclass(frozen=True, kw_only=True)
class _Chart:
    title: str
    keys: tuple[str, ...]
    names: tuple[str, ...]
    from_zero: bool = False
    logarithmic: bool = False
    """Equal factors are equally far apart: a loss that falls from 8 to 0.1 shows its end as well as its beginning."""


_CHARTS = (
    _Chart(
        title="loss (nats a token)",
        keys=("loss", "validation_loss"),
        names=("training", "validation"),
        logarithmic=True,
    ),
    _Chart(title="learning rate", keys=("learning_rate",), names=("",), from_zero=True),
    _Chart(title="gradient norm", keys=("gradient_norm",), names=("",), from_zero=True),
    _Chart(title="tokens per second", keys=("tokens_per_second",), names=("",), from_zero=True),
)
_CHART_OF_EXPERTS = _Chart(
    title="load of experts (1 is an even share)",
    keys=("busiest_expert", "idlest_expert"),
    names=("busiest", "idlest"),
    from_zero=True,
)

Points = list[tuple[float, float]]


def render_page(title: str, lines: Sequence[dict[str, Any]], *, total_steps: int, status: str) -> str:
    """The whole page. `lines` are those of metrics.jsonl; while `status` is "running" the page reloads itself."""
    step = max((line["step"] for line in lines), default=0)
    refresh = '<meta http-equiv="refresh" content="5">' if status == "running" else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"<p>{html.escape(status)}: step {step:,} of {total_steps:,}</p>"
        f'<div class="track"><div style="width:{100 * step / max(total_steps, 1):.1f}%"></div></div>'
        f"<main>{figures(lines, total_steps=total_steps)}</main></body></html>\n"
    )


def figures(lines: Sequence[dict[str, Any]], *, total_steps: int, say: Callable[[str], str] = str) -> str:
    """The curves and the last values, as figures that `STYLE` dresses; `say` translates the words on them."""
    latest: dict[str, Any] = {}
    for line in lines:
        latest |= line
    shown = (*_CHARTS, _CHART_OF_EXPERTS) if "busiest_expert" in latest else _CHARTS
    charts = "".join(_figure(_said(chart, say), lines, total_steps) for chart in shown) + load_figure(lines)
    rows = "".join(
        f"<tr><td>{html.escape(key)}<td>{_short(value)}" for key, value in latest.items() if not isinstance(value, list)
    )
    return f"{charts}<figure><figcaption>{say('last values')}</figcaption><table>{rows}</table></figure>"


def _said(chart: _Chart, say: Callable[[str], str]) -> _Chart:
    return replace(chart, title=say(chart.title), names=tuple(say(name) for name in chart.names))


def _figure(chart: _Chart, lines: Sequence[dict[str, Any]], total_steps: int) -> str:
    curves = [_thin([(line["step"], line[key]) for line in lines if _is_number(line.get(key))]) for key in chart.keys]
    names = "".join(
        f'<span class="{color}">{name}</span>'
        for name, color, curve in zip(chart.names, "ab", curves, strict=False)
        if name and curve
    )
    body = _axes_and_curves(curves, total_steps, chart) if any(curves) else ""
    return (
        f"<figure><figcaption>{chart.title}{names}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{chart.title}">{body}</svg></figure>'
    )


def _axes_and_curves(curves: Sequence[Points], total_steps: int, chart: _Chart) -> str:
    values = [value for curve in curves for _, value in curve]
    low, high = (0.0 if chart.from_zero else min(values)), max(values)
    logarithmic = chart.logarithmic and low > 0
    ticks = _powers(low, high) if logarithmic else _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    scale = math.log if logarithmic else float

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(total_steps, 1)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (scale(value) - scale(low)) / (scale(high) - scale(low))

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
        for tick in ticks
    ]
    parts += [
        f'<text x="{x(step):.1f}" y="{_HEIGHT - 8}" text-anchor="{"end" if step == total_steps else "middle"}">'
        f"{_short(step)}</text>"
        for step in _ticks(0, total_steps)
        if step <= total_steps
    ]
    for curve, color in zip(curves, "ab", strict=False):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in curve)
        parts.append(f'<polyline class="{color}" points="{path}"/>')
        if 0 < len(curve) <= 30:
            parts += [
                f'<circle class="{color}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3">'
                f"<title>step {_short(step)}: {_short(value)}</title></circle>"
                for step, value in curve
            ]
    return "".join(parts)


def _thin(points: Points) -> Points:
    """At most `_MOST_POINTS` points, each the mean of a run of neighbours."""
    size = -(-len(points) // _MOST_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that span low..high, three to seven of them."""
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    gap = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first, last = math.floor(low / gap), math.ceil(high / gap)
    return [round(i * gap, 12) for i in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that span low..high; powers of ten alone when those are too many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fine = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
    begin = max(i for i, tick in enumerate(fine) if tick <= low * (1 + 1e-9))
    end = min(i for i, tick in enumerate(fine) if tick >= high * (1 - 1e-9) and i > begin)
    ticks = fine[begin : end + 1]
    if len(ticks) > 8:
        ticks = [10.0**power for power in range(first, last + 1)]
    return [float(f"{tick:.12g}") for tick in ticks]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _short(value: Any) -> str:
    if not _is_number(value):
        return html.escape(str(value))
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}"
