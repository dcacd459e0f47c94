"""The pages of runs: the list, and one run with its curves, label X-ray, figures, certificate and evaluation.

Pages without a script. The X-ray is a page of its own, written by the run; it stands in a frame that may run nothing.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from leveret.serve.web import run_tables
from leveret.serve.web.language import LANGUAGES, Language
from leveret.serve.web.run_folder import StageFolder, last_change, read_lines, read_object, read_text, stages_of
from leveret.serve.web.run_tables import Raw, Say, table
from leveret.serve.web.run_words import speaker
from leveret.serve.web.style import STYLE
from leveret.trainer.metrics_page import STYLE as CHART_STYLE
from leveret.trainer.metrics_page import figures

Section = Callable[[StageFolder, Say], str]


def list_page(runs: dict[str, Path], language: Language) -> str:
    """The runs, with links to their pages."""
    say = speaker(language)
    rows = [
        (
            Raw(f'<a href="/runs/{_quoted(name)}?lang={language}">{html.escape(name)}</a>'),
            ", ".join(stage.name for stage in stages_of(run) if stage.name),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(last_change(run))),
        )
        for name, run in runs.items()
    ]
    empty = f'<p class="soft">{say("There is no run in this folder yet.")}</p>'
    body = table([say("run"), say("stages"), say("last change")], rows) if rows else empty
    return _page(say("Runs"), body, language, links=_switch("/runs", language))


def run_page(name: str, run: Path, language: Language, *, alone: bool = False) -> str:
    """The page of a run; `alone`: as a file, without links to what a server has."""
    say = speaker(language)
    stages = stages_of(run)
    body = _contents(stages) + "".join(_stage(stage, say) for stage in stages)
    empty = f'<p class="soft">{say("There is nothing to show in this run yet.")}</p>'
    back = f'<a href="/runs?lang={language}">{say("All runs")}</a>'
    links = "" if alone else back + _switch(f"/runs/{_quoted(name)}", language)
    return _page(name, body or empty, language, links=links)


def _page(title: str, body: str, language: Language, *, links: str) -> str:
    code = "zh-CN" if language == "zh" else "en"
    top = f"<nav>{links}</nav>" if links else ""
    return (
        f'<!doctype html><html lang="{code}"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)} · Leveret</title>'
        f"<style>{CHART_STYLE}{STYLE}</style></head><body>{top}<h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def _switch(place: str, language: Language) -> str:
    others = [f'<a href="{place}?lang={code}">{name}</a>' for code, name in LANGUAGES.items() if code != language]
    return f"<span>{' '.join(others)}</span>"


def _contents(stages: list[StageFolder]) -> str:
    """Links to the stages, where there are several."""
    links = [f'<a href="#{_quoted(each.name)}">{html.escape(each.name)}</a>' for each in stages if each.name]
    return f"<p>{' · '.join(links)}</p>" if len(links) > 1 else ""


def _stage(stage: StageFolder, say: Say) -> str:
    """All sections of a stage; one that cannot be read says so and spoils no other."""
    name = html.escape(stage.name)
    parts = [f'<h2 id="{name}">{name}</h2>'] if name else []
    for file, (title, section) in _SECTIONS.items():
        if file not in stage.files:
            continue
        try:
            content = section(stage, say)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            reason = f"{file} {say('cannot be shown')}: {type(error).__name__}: {error}"
            content = f'<p class="bad">{html.escape(reason)}</p>'
        if content:
            parts.append(f"<h3>{say(title)}</h3>{content}")
    return "".join(parts)


def _curves(stage: StageFolder, say: Say) -> str:
    lines = read_lines(stage.files["metrics.jsonl"])
    if not lines:
        return ""
    done = "outcome.json" in stage.files
    last = max(line["step"] for line in lines)
    total = last if done else max(last, _planned_steps(stage))
    status = say("done") if done else f"{say('not finished')}: {last:,} / {total:,}"
    return f'<p class="soft">{status}</p><main>{figures(lines, total_steps=total, say=say)}</main>'


def _planned_steps(stage: StageFolder) -> int:
    """The number of steps that the run's own page of curves names; 0 when there is none."""
    try:
        page = (stage.files["metrics.jsonl"].parent / "metrics.html").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return 0
    found = re.search(r": step [\d,]+ of ([\d,]+)</p>", page)
    return int(found[1].replace(",", "")) if found else 0


def _xray(stage: StageFolder, say: Say) -> str:
    page = html.escape(read_text(stage.files["xray.html"]))
    note = say("What is trained, token by token: on a colored ground trained, else only read.")
    return f'<p class="soft">{note}</p><iframe sandbox title="{say("Label X-ray")}" srcdoc="{page}"></iframe>'


def _from_object(file: str, draw: Callable[[run_tables.Content, Say], str]) -> Section:
    return lambda stage, say: draw(read_object(stage.files[file]), say)


_SECTIONS: dict[str, tuple[str, Section]] = {
    "metrics.jsonl": ("Curves", _curves),
    "outcome.json": ("Figures", _from_object("outcome.json", run_tables.figures_table)),
    "plan.json": ("Forecast and measured", _from_object("plan.json", run_tables.forecast)),
    "xray.html": ("Label X-ray", _xray),
    "evaluation.json": ("Evaluation", _from_object("evaluation.json", run_tables.evaluation)),
    "certificate.json": ("Certificate", _from_object("certificate.json", run_tables.certificate)),
    "quantization.json": ("Quantization", _from_object("quantization.json", run_tables.quantization)),
}


def _quoted(name: str) -> str:
    return quote(name, safe="")
