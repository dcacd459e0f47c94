"""Compare two loaded forms: ids, what they say, weights, logits, perplexity, greedy text; each a check with a verdict.

The order matters. Different token ids explain everything that follows, so they are looked at first; logits are then
compared on the first form's ids, so that a changed tokenizer and changed weights are told apart. When a check fails,
`parting` says where: the text and the token, and the layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from leveret.certify.context import compare_context
from leveret.certify.divergence import SequenceDivergence, compare_logits, mean_kl, perplexities, worst_position
from leveret.certify.experts import compare_experts
from leveret.certify.findings import Check, Comparison, Parting, verdict
from leveret.certify.form import Form
from leveret.certify.greedy import compare_greedy
from leveret.certify.matrices import compare_matrices
from leveret.certify.network import compare_network
from leveret.certify.parting import Culprit, find_culprit
from leveret.certify.rows import compare_rows
from leveret.certify.sampling import compare_sampling
from leveret.certify.stops import compare_stops
from leveret.certify.thresholds import BOUNDS, Bounds, kind_of
from leveret.certify.token_ids import Encoded, compare_ids
from leveret.certify.zoo import Fixture
from leveret.engine.perplexity import Window
from leveret.errors import ConfigError


def compare_forms(
    first: Form, second: Form, *, fixtures: Sequence[Fixture], windows: Sequence[Window], greedy_tokens: int
) -> Comparison:
    """Compare `second` with `first` on the zoo's fixtures and on windows of text (these may be none).

    `greedy_tokens` is how many ids each conversation is continued by.
    """
    kind = kind_of(first.numerics, second.numerics)
    bounds = BOUNDS[kind]
    ids_check, encoded, ids_parting = compare_ids(first, second, fixtures)
    said_checks = (
        compare_stops(first, second), compare_sampling(first, second), compare_context(first, second),
        compare_network(first, second),
    )  # fmt: skip
    shorter = min(first, second, key=lambda form: form.context_tokens)
    too_long, encoded = len(encoded), room_for(encoded, shorter, greedy_tokens)
    too_long -= len(encoded)
    windows = [replace(window, ids=window.ids[: shorter.context_tokens]) for window in windows]
    sizes = [form.logits([0]).shape[-1] for form in (first, second)]
    if sizes[0] != sizes[1]:
        measured = f"logits over {sizes[0]:,} and {sizes[1]:,} ids: not two forms of one model"
        checks = [
            ids_check,
            *said_checks,
            Check(name="vocabulary", measured=measured, bound="equal", verdict="different"),
        ]
        return Comparison(
            first=first.name,
            second=second.name,
            kind=kind,
            checks=tuple(checks),
            figures={},
            parting=told_in_text(ids_parting, first),
        )
    sequences = _run_both(first, second, encoded, windows)
    tolerance = logit_tolerance(sequences, bounds)
    numeric = [_logits_check(sequences, tolerance, too_long), kl_check(sequences, bounds)]
    numeric.append(perplexity_check(sequences, bounds))
    weights_checks = (
        compare_rows(first, second, bounds.row_error, sizes[0]),
        *(compare_matrices(first, second, bounds.row_error) if kind == "16-bit" else ()),
        *compare_experts(first, second, bounds.expert_error),
    )
    parting = ids_parting
    if parting is None and any(check.verdict == "different" for check in numeric):
        parting = _numeric_parting(first, second, sequences, tolerance)
    greedy_check, greedy_parting = compare_greedy(first, second, encoded, greedy_tokens, tolerance)
    return Comparison(
        first=first.name,
        second=second.name,
        kind=kind,
        checks=(ids_check, *said_checks, *weights_checks, *numeric, greedy_check),
        figures=figures_of(sequences),
        parting=told_in_text(parting or greedy_parting, first),
    )


def told_in_text(parting: Parting | None, first: Form) -> Parting | None:
    """With the text before it, where it lies behind some."""
    return parting.in_text(first.own_tokenizer) if parting is not None and parting.before else parting


def room_for(encoded: Encoded, form: Form, greedy_tokens: int) -> Encoded:
    """Those fixtures that fit into a form's context with their continuations; ConfigError when none does."""
    fitting = [(fixture, ids) for fixture, ids in encoded if len(ids) <= form.context_tokens - greedy_tokens]
    if not fitting:
        raise ConfigError(f"a context of {form.context_tokens} tokens is too short for the fixtures of the comparison")
    return fitting


def _run_both(first: Form, second: Form, encoded: Encoded, windows: Sequence[Window]) -> list[SequenceDivergence]:
    inputs = [(f"{fixture.kind} '{fixture.name}'", ids, False) for fixture, ids in encoded]
    inputs += [(window.name, window.ids, True) for window in windows]
    return [
        compare_logits(name, ids, first.logits(ids), second.logits(ids), is_text=is_text)
        for name, ids, is_text in inputs
    ]


def logit_tolerance(sequences: Sequence[SequenceDivergence], bounds: Bounds) -> float | None:
    """The bound on a logit's difference, in logits; None when this kind of pair is not judged by it."""
    if bounds.logit_difference is None:
        return None
    return bounds.logit_difference * max(1.0, *(sequence.largest_logit for sequence in sequences))


def _logits_check(sequences: Sequence[SequenceDivergence], tolerance: float | None, too_long: int) -> Check:
    difference = largest_difference(sequences)
    positions = sum(len(sequence.kl_T) for sequence in sequences)
    return Check(
        name="logits",
        measured=f"largest difference {difference:.2g} over {positions:,} positions"
        + (f"; {too_long} left out, longer than the context" if too_long else ""),
        bound="-" if tolerance is None else f"{tolerance:.2g}",
        verdict="reported" if tolerance is None else verdict(difference <= tolerance),
    )


def kl_check(sequences: Sequence[SequenceDivergence], bounds: Bounds, note: str = "") -> Check:
    """The check of the mean KL divergence, by the upper end of its interval."""
    kl = mean_kl(sequences)
    return Check(
        name="KL divergence",
        measured=f"{kl.mean:.2g} nats a token (95 %: {kl.low:.2g} to {kl.high:.2g}), "
        f"same choice {_same_choice(sequences):.1%}{note}",
        bound=f"{bounds.kl_nats:g} nats",
        verdict=verdict(kl.high <= bounds.kl_nats),
    )


def perplexity_check(sequences: Sequence[SequenceDivergence], bounds: Bounds) -> Check:
    """The check of the texts' perplexity; not compared without texts."""
    pair = perplexities(sequences)
    if pair is None:
        return Check(name="perplexity", measured="no text was given", bound="-", verdict="not compared")
    ratio = pair[1] / pair[0]
    return Check(
        name="perplexity",
        measured=f"{pair[0]:.4f} and {pair[1]:.4f}, ratio {ratio:.4f}",
        bound=f"ratio {bounds.perplexity_ratio:g}",
        verdict=verdict(ratio <= bounds.perplexity_ratio),
    )


def figures_of(sequences: Sequence[SequenceDivergence]) -> dict[str, float]:
    """The same as numbers, for certificate.json."""
    kl, pair = mean_kl(sequences), perplexities(sequences)
    figures = {
        "positions": float(sum(len(sequence.kl_T) for sequence in sequences)),
        "largest_logit_difference": largest_difference(sequences),
        "kl_nats": kl.mean,
        "kl_nats_low": kl.low,
        "kl_nats_high": kl.high,
        "same_choice": _same_choice(sequences),
    }
    return figures if pair is None else figures | {"perplexity_first": pair[0], "perplexity_second": pair[1]}


def _numeric_parting(
    first: Form, second: Form, sequences: Sequence[SequenceDivergence], tolerance: float | None
) -> Parting:
    sequence, at = worst_position(sequences, tolerance)
    detail = f"logits differ by {sequence.difference_T[at]:.2g}, KL {sequence.kl_T[at]:.2g} nats"
    culprit = None
    if first.model is not None and second.model is not None:
        culprit = find_culprit(first.model, second.model, list(sequence.ids[: at + 1]), lossy=tolerance is None)
    note = _stand_in_note(first, second, culprit)
    first_place = tolerance is not None
    return Parting(
        where=sequence.name,
        token_index=at,
        detail=detail + note,
        culprit=culprit,
        is_first=first_place,
        before=sequence.ids[:at],
    )


def _stand_in_note(first: Form, second: Form, culprit: Culprit | None) -> str:
    """What is to be said of a file that another program runs, and we only read."""
    files = [form for form in (first, second) if form.reader == "llama.cpp"]
    if not files:
        return ""
    if any(form.model is None for form in files):
        return "; Leveret does not read the file, so the tensor is not known"
    if culprit is None:
        return "; as Leveret reads the file it agrees, so the difference is in how llama.cpp computes"
    return "; looked into as Leveret reads the file"


def _same_choice(sequences: Sequence[SequenceDivergence]) -> float:
    """Share of positions at which both would choose the same next id."""
    return sum(int(sequence.same_choice_T.sum()) for sequence in sequences) / sum(
        len(sequence.kl_T) for sequence in sequences
    )


def largest_difference(sequences: Sequence[SequenceDivergence]) -> float:
    """Over all positions; NaN if one of them is."""
    values = [float(sequence.difference_T.max()) for sequence in sequences]
    return math.nan if any(math.isnan(value) for value in values) else max(values)
