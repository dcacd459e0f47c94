"""`leveret certify A B [C ...]`: every form against the first; a table of verdicts, a certificate, a card.

Forms are loaded two at a time: the first stays, the others come and go. The certificate and the card are written
before a failure is raised, so that they say what failed.
"""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

from leveret.certify.card import write_card
from leveret.certify.certificate import Certificate, describe_form
from leveret.certify.compare import compare_forms
from leveret.certify.compare_server import compare_server
from leveret.certify.config import CertifyConfig
from leveret.certify.findings import Comparison
from leveret.certify.form import Form
from leveret.certify.forms import load_form, transformers_can_read
from leveret.certify.references import TRANSFORMERS_PREFIX, is_server
from leveret.certify.remembered import Remembered
from leveret.certify.server import Server
from leveret.certify.thresholds import numerics_for
from leveret.certify.zoo import Fixture, zoo
from leveret.commands import StageResult
from leveret.console import Console
from leveret.engine.perplexity import Window, windows_from_files
from leveret.errors import CertificateError, ConfigError, MissingExtra
from leveret.extras import require
from leveret.paths import atomic_write

SMUGGLED_TOKENS = 3
"""How many of the model's special tokens user text tries to smuggle in."""


def run(config: CertifyConfig, console: Console) -> StageResult:
    """Compare all forms; returns the verdict, or raises CertificateError after everything is written."""
    references, notes = _references(config)
    with closing(Remembered(load_form(references[0]))) as first:
        described, comparisons = [describe_form(first)], []
        fixtures, windows = _inputs(config, first)
        with console.progress("certify", len(references) - 1, "pair") as progress:
            for done, reference in enumerate(references[1:], start=1):
                begun = time.perf_counter()
                description, comparison = _compared(config, first, reference, fixtures, windows)
                described.append(description)
                comparisons.append(replace(comparison, seconds=time.perf_counter() - begun))
                progress.update(done, last="passed" if comparison.passed else "FAILED")
    certificate = Certificate(forms=tuple(described), comparisons=tuple(comparisons), notes=tuple(notes))
    certificate.show(console)
    if config.output is not None:
        content = json.dumps(certificate.as_json(), indent=1, ensure_ascii=False)
        atomic_write(config.output / "certificate.json", content + "\n")
    if config.card is not None:
        console.info(f"card: {write_card(config, config.card, certificate)}")
    if not certificate.passed:
        raise CertificateError(certificate.failure(), hint="the bounds are in leveret/certify/thresholds.py")
    return StageResult(output=config.output, summary=_summary(comparisons))


def _compared(
    config: CertifyConfig, first: Form, reference: str, fixtures: tuple[Fixture, ...], windows: list[Window]
) -> tuple[dict[str, Any], Comparison]:
    """What the certificate says of another form, and how it compares with the first."""
    if is_server(reference):
        server, numerics = Server(reference.rstrip("/"), first.own_tokenizer), numerics_for(config.server_numbers)
        described = {"name": reference, "reader": "server", "numbers": f"taken for {numerics}", "model": server.model}
        compared = compare_server(
            first, server, numerics, fixtures=fixtures, windows=windows, greedy_tokens=config.greedy_tokens
        )
        return described, compared
    with closing(load_form(reference)) as second:
        compared = compare_forms(first, second, fixtures=fixtures, windows=windows, greedy_tokens=config.greedy_tokens)
        return describe_form(second), compared


def _references(config: CertifyConfig) -> tuple[list[str], list[str]]:
    """The forms to load, with the first plain directory by transformers added if it can be; and what was left out."""
    references = list(config.forms)
    if config.transformers == "off" or any(form.startswith(TRANSFORMERS_PREFIX) for form in references):
        return references, []
    readable = next((form for form in references if transformers_can_read(form)), None)
    problem = "no form is a plain directory of a family that transformers has"
    if readable is not None:
        try:
            require("transformers", extra="transformers", purpose=f"comparing {readable} with what transformers reads")
        except MissingExtra as error:
            problem = error.message
        else:
            return [*references, f"{TRANSFORMERS_PREFIX}{readable}"], []
    if config.transformers == "require" or len(references) < 2:
        raise ConfigError(
            f"nothing to compare with by transformers: {problem}", hint='pip install "leveret[transformers]"'
        )
    return references, [problem]


def _inputs(config: CertifyConfig, first: Form) -> tuple[tuple[Fixture, ...], list[Window]]:
    """The zoo with special tokens of this model, and windows of the texts."""
    tokenizer = first.own_tokenizer
    smuggled = list(tokenizer.special_ids)[:SMUGGLED_TOKENS]
    windows = windows_from_files(
        config.text, tokenizer, context_tokens=first.context_tokens, most_tokens=config.text_tokens
    )
    return zoo(smuggled), windows


def _summary(comparisons: list[Comparison]) -> dict[str, Any]:
    figures = {f"{comparison.second}: KL nats": comparison.figures.get("kl_nats") for comparison in comparisons}
    return {"passed": all(comparison.passed for comparison in comparisons), "pairs": len(comparisons), **figures}
