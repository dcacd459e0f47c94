"""The certificate: all comparisons of one model, as a table, as JSON, and as the sentence an error ends with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leveret.certify.findings import LAST_CHARACTERS, Check, Comparison, Parting
from leveret.certify.form import Form
from leveret.console import Console
from leveret.version import VERSION

SHOWN_BY_PARTING = ("token ids", "logits", "KL divergence", "perplexity", "greedy text")
"""Checks whose difference is where two forms part; what others found is told beside it."""

COLUMNS = ("check", "found", "bound", "verdict")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Every form compared with the first."""

    forms: tuple[dict[str, Any], ...]
    """Name, reader and number format of every form, the first being the one that all are compared with."""
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    @property
    def passed(self) -> bool:
        """Whether all comparisons passed."""
        return all(comparison.passed for comparison in self.comparisons)

    def as_json(self) -> dict[str, Any]:
        """The content of certificate.json; figures that are not finite become null."""
        return {
            "leveret": VERSION,
            "passed": self.passed,
            "forms": list(self.forms),
            "comparisons": [_comparison(comparison) for comparison in self.comparisons],
            "notes": list(self.notes),
        }

    def show(self, console: Console) -> None:
        """Print one table a comparison, and the notes."""
        for comparison in self.comparisons:
            verdict = "passed" if comparison.passed else "FAILED"
            title = f"{comparison.second} against {comparison.first} ({comparison.kind}): {verdict}"
            console.table(title, COLUMNS, [_row(check) for check in comparison.checks])
            if comparison.parting is not None and not comparison.passed:
                console.print(f"They part {comparison.parting}")
        for form in self.forms:
            if "remark" in form:
                console.print(f"{form['name']}: {form['remark']}")
        for note in self.notes:
            console.print(f"Left out: {note}")

    def failure(self) -> str:
        """What failed and where, for the error message."""
        lines = []
        for comparison in self.comparisons:
            if not comparison.passed:
                failed = [check for check in comparison.checks if check.verdict == "different"]
                names = ", ".join(check.name for check in failed)
                lines.append(f"{comparison.second} is not {comparison.first}: {names} differ")
                if comparison.parting is not None:
                    lines.append(f"  {comparison.parting}")
                told = () if comparison.parting is None else SHOWN_BY_PARTING
                lines += [f"  {check.name}: {check.measured}" for check in failed if check.name not in told]
        return "\n".join(lines)


def describe_form(form: Form) -> dict[str, Any]:
    """What the certificate says of a form."""
    said = {"name": form.name, "reader": form.reader, "numbers": str(form.numerics)}
    return said | ({"remark": form.remark} if form.remark else {})


def rows_of(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """All checks of all comparisons: form, check, found, bound, verdict."""
    return [(comparison.second, *_row(check)) for comparison in comparisons for check in comparison.checks]


def _row(check: Check) -> tuple[str, str, str, str]:
    return check.name, check.measured, check.bound, check.verdict


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "first": comparison.first,
        "second": comparison.second,
        "kind": comparison.kind,
        "passed": comparison.passed,
        "seconds": round(comparison.seconds, 2),
        "checks": [vars(check) for check in comparison.checks],
        "figures": {name: value if math.isfinite(value) else None for name, value in comparison.figures.items()},
        "parting": _parting(comparison.parting),
    }


def _parting(parting: Parting | None) -> dict[str, Any] | None:
    if parting is None:
        return None
    culprit = None if parting.culprit is None else vars(parting.culprit) | {"layer": parting.culprit.layer}
    return {
        "where": parting.where,
        "token_index": parting.token_index,
        "character": len(parting.text_before),
        "text_before": parting.text_before[-LAST_CHARACTERS:],
        "detail": parting.detail,
        "module": culprit,
    }
