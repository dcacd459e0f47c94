"""The page of a forensic report: the rows of a step as bars, the highest loss first, each with its texts."""

from __future__ import annotations

import html
import json
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leveret.trainer.forensics import DocumentReport, RowReport, StepReport

_STYLE = """
:root { color-scheme: light dark; --ink:#1c2330; --soft:#667085; --line:#e4e7ec; --card:#fff; --page:#f7f8fa;
  --high:#dc2626; --bar:#2563eb; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ef; --soft:#98a2b3; --line:#2c3442; --card:#171c26;
  --page:#0f131a; --high:#f87171; --bar:#6ea8fe; } }
body { margin:0 auto; max-width:1080px; padding:24px; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui, sans-serif; }
h1 { font-size:20px; margin:0 0 4px; } h2 { font-size:16px; margin:28px 0 8px; } p { margin:0 0 12px; }
.soft { color:var(--soft); } table { border-collapse:collapse; font-variant-numeric:tabular-nums; }
td { padding:2px 18px 2px 0; }
section { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px 14px;
  margin:0 0 12px; }
header { display:flex; gap:14px; align-items:baseline; flex-wrap:wrap; } header b { font-variant-numeric:tabular-nums; }
code { font:13px ui-monospace, monospace; overflow-wrap:anywhere; }
.track { height:6px; border-radius:3px; background:var(--line); margin:6px 0 8px; }
.track div { height:6px; border-radius:3px; background:var(--bar); } .high .track div { background:var(--high); }
.high header b { color:var(--high); }
pre { margin:2px 0 10px; white-space:pre-wrap; overflow-wrap:anywhere; font:13px/1.45 ui-monospace, monospace;
  border-left:3px solid var(--line); padding-left:10px; }
"""


def render_report(report: StepReport) -> str:
    """The whole page, self-contained."""
    title = f"step {report.step:,}: {'loss spike' if report.reason == 'spike' else 'the loss is not finite'}"
    facts = "".join(
        f"<tr><td class=soft>{html.escape(name.replace('_', ' '))}<td>{_number(value)}"
        for name, value in report.facts.items()
    )
    shown = [row for row in report.rows if row.documents]
    typical = report.facts.get("typical")
    limit = report.facts.get("limit")
    top = max((row.loss for row in shown if math.isfinite(row.loss)), default=1.0)
    rows = "".join(_row(row, top=top, limit=limit if isinstance(limit, float) else math.inf) for row in shown)
    more = len(report.rows) - len(shown)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<p class="soft">{html.escape(report.action)}</p><table>{facts}</table>'
        f"<h2>The {len(shown)} rows with the highest losses, of {len(report.rows)}</h2>"
        f'<p class="soft">Measured one by one {report.measured}, without dropout{_typically(typical)}. One row far '
        "above the others is bad data; all of them high is a model gone astray.</p>"
        f"{rows}{_exclusion(shown)}"
        + (f'<p class="soft">{more} more rows are in step-{report.step}.json.</p>' if more > 0 else "")
        + "</body></html>\n"
    )


def _row(row: RowReport, *, top: float, limit: float) -> str:
    finite = math.isfinite(row.loss)
    high = row.trained_tokens > 0 and not row.loss <= limit  # NaN is high too
    share = 100 * max(row.loss, 0.0) / max(top, 1e-9) if finite else 100.0 * high
    return (
        f'<section class="{"high" if high else ""}"><header><b>{_number(row.loss)}</b>'
        f"<code>{html.escape(row.key)}</code>"
        f'<span class="soft">{row.trained_tokens:,} trained tokens</span></header>'
        f'<div class="track"><div style="width:{share:.1f}%"></div></div>'
        + "".join(_document(document) for document in row.documents)
        + "</section>"
    )


def _document(document: DocumentReport) -> str:
    key = "source not known" if document.key is None else document.key
    return (
        f"<code>{html.escape(key)}</code> "
        f'<span class="soft">{document.tokens:,} tokens</span><pre>{html.escape(document.text)}</pre>'
    )


def _exclusion(rows: list[RowReport]) -> str:
    """How to leave out what is in the worst row."""
    if not rows:
        return ""
    keys = [document.key for document in rows[0].documents if document.key] or [rows[0].key]
    lines = "\n".join(f"  - {json.dumps(key, ensure_ascii=False)}" for key in dict.fromkeys(keys))
    return (
        '<h2>To leave data out</h2><p class="soft">Put the keys that do not belong into the stage of the recipe '
        f"and run it again (these are those of the first row):</p><pre>exclude_rows:\n{html.escape(lines)}</pre>"
    )


def _typically(typical: object) -> str:
    return f"; {_number(typical)} was typical for a step" if isinstance(typical, float) else ""


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))
