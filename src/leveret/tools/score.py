"""Scores of tool calling: the share of exact answers by kind, language, group and tool, and what went wrong.

A share of n requests has an error of its own: each accuracy comes with Wilson's 95 % interval, which stays inside
[0, 1] and is honest for few requests and for shares near 1 (Wilson 1927; Brown, Cai and DasGupta 2001).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from leveret.chat.messages import ToolCall
from leveret.tools.checker import ERROR_CLASSES, Verdict
from leveret.tools.requests import ToolRequest

_Z = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A request, the answer it got and the verdict."""

    request: ToolRequest
    predicted: Sequence[ToolCall] | None
    verdict: Verdict


@dataclass(kw_only=True)
class Tally:
    """Counts of one group of requests."""

    num_requests: int = 0
    num_exact: int = 0
    num_lenient: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.num_requests += 1
        self.num_exact += verdict.exact
        self.num_lenient += verdict.lenient
        if verdict.error is not None:
            self.errors[verdict.error] += 1

    def to_json(self) -> dict[str, Any]:
        """Counts, shares and the 95 % interval of the exact share."""
        low, high = wilson_interval(self.num_exact, self.num_requests)
        return {
            "requests": self.num_requests,
            "exact": self.num_exact,
            "exact_share": share(self.num_exact, self.num_requests),
            "exact_interval_95": [low, high],
            "lenient_share": share(self.num_lenient, self.num_requests),
            "errors": {name: self.errors[name] for name in ERROR_CLASSES if self.errors[name]},
        }


@dataclass(frozen=True, kw_only=True)
class Score:
    """Tallies of the same requests, cut in several ways."""

    overall: Tally
    kinds: dict[str, Tally]
    """single, combined, irrelevant (no call is right)."""
    languages: dict[str, Tally]
    """Chinese when the request holds a Han character, else English."""
    groups: dict[str, Tally]
    """By the requests' own `group`, where they have one."""
    tools: dict[str, Tally]
    """Single requests by the tool that was asked for."""
    arguments: Counter[str]
    """How often each `tool.parameter` was the first wrong argument."""

    def to_json(self) -> dict[str, Any]:
        """Everything, for evaluation.json."""
        cuts = {"kinds": self.kinds, "languages": self.languages, "groups": self.groups, "tools": self.tools}
        tables = {name: {key: tally.to_json() for key, tally in cut.items()} for name, cut in cuts.items()}
        return {"overall": self.overall.to_json(), **tables, "wrong_arguments": dict(self.arguments.most_common())}


def score(judged: Iterable[Judged]) -> Score:
    """Count verdicts by kind, language, group and tool; keys come in a fixed order."""
    result = Score(overall=Tally(), kinds={}, languages={}, groups={}, tools={}, arguments=Counter())
    for each in judged:
        request, verdict = each.request, each.verdict
        result.overall.add(verdict)
        result.kinds.setdefault(kind_of(request), Tally()).add(verdict)
        result.languages.setdefault(language_of(request.query), Tally()).add(verdict)
        if request.group is not None:
            result.groups.setdefault(request.group, Tally()).add(verdict)
        if len(request.calls) == 1:
            result.tools.setdefault(request.calls[0].name, Tally()).add(verdict)
        if verdict.parameter is not None:
            result.arguments[f"{verdict.tool}.{verdict.parameter}"] += 1
    for cut in (result.kinds, result.languages, result.groups, result.tools):
        ordered = sorted(cut.items())
        cut.clear()
        cut.update(ordered)
    return result


def kind_of(request: ToolRequest) -> str:
    """`irrelevant`, `single` or `combined`, by the number of calls asked for."""
    return ("irrelevant", "single")[len(request.calls)] if len(request.calls) < 2 else "combined"


def language_of(text: str) -> str:
    """`Chinese` when there is a Han character, else `English`."""
    return "Chinese" if any("\u3400" <= character <= "\u9fff" for character in text) else "English"


def share(part: int, whole: int) -> float | None:
    """part / whole, None of nothing."""
    return part / whole if whole else None


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    mean, spread = successes / trials, _Z**2 / trials
    center = (mean + spread / 2) / (1 + spread)
    half = math.sqrt(mean * (1 - mean) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)
