"""Compare a form with a running server: what can be asked of the server, and in words what cannot.

The logits of the first form are compared with the log probabilities that the server tells of a prompt; where it tells
none, with those it gives along its own greedy answers. A check that this server makes impossible stands in the table as
`not compared`, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from leveret.certify.compare import (
    figures_of,
    kl_check,
    largest_difference,
    logit_tolerance,
    perplexity_check,
    room_for,
    told_in_text,
)
from leveret.certify.divergence import SequenceDivergence, compare_logprobs, worst_position
from leveret.certify.findings import Check, Comparison, Parting, verdict
from leveret.certify.form import NO_ID, OURS, Form
from leveret.certify.server import Generated, Server
from leveret.certify.thresholds import BOUNDS, Bounds, Numerics, kind_of
from leveret.certify.token_ids import Encoded, parting_of
from leveret.certify.zoo import Fixture
from leveret.engine.perplexity import Window

Answers = Sequence[tuple[Fixture, tuple[int, ...], Generated | None]]
"""Fixture, prompt, and what the server wrote after it."""

SPARE = 4
"""Ids that a server may write beyond what it is asked for, to end a character."""

NO_SCORES = "the server gives no log probabilities of a prompt (echo) and none of its answers"


def compare_server(
    first: Form,
    server: Server,
    numerics: Numerics,
    *,
    fixtures: Sequence[Fixture],
    windows: Sequence[Window],
    greedy_tokens: int,
) -> Comparison:
    """Compare the server with `first`; `numerics` is how it computes, which it does not tell itself."""
    kind = kind_of(first.numerics, numerics)
    bounds = BOUNDS[kind]
    ids_check, ids_parting = _ids(first, server, fixtures)
    encoded = room_for(
        [(fixture, ids) for fixture in fixtures if (ids := first.encode(fixture))], first, greedy_tokens + SPARE
    )
    answers = [(fixture, ids, server.continue_greedily(ids, greedy_tokens)) for fixture, ids in _prompts(encoded)]
    continued = first.continue_greedily([ids for _, ids, _ in answers], greedy_tokens + SPARE)
    sequences, scored = _scored(first, server, encoded, windows), True
    if not sequences:
        sequences, scored = _along_answers(first, answers, continued), False
    stops = Check(name="stop ids", measured="a server does not tell them", bound="-", verdict="not compared")
    checks, parting = _numbers(sequences, bounds, scored=scored)
    tolerance = logit_tolerance(sequences, bounds) if sequences else None
    greedy, greedy_parting = _greedy(first, answers, continued, tolerance, judged=bounds.logit_difference is not None)
    return Comparison(
        first=first.name,
        second=server.url,
        kind=kind,
        checks=(ids_check, stops, *checks, greedy),
        figures=figures_of(sequences) if sequences else {},
        parting=told_in_text(ids_parting or parting or greedy_parting, first),
    )


def _ids(first: Form, server: Server, fixtures: Sequence[Fixture]) -> tuple[Check, Parting | None]:
    """Token ids where the server tells them, else the number of a conversation's.

    A server may refuse tools that its model does not know; that it refuses a plain conversation is a difference.
    """
    if first.reader in OURS:  # other programs make special tokens of user text that spells them
        fixtures = [fixture for fixture in fixtures if not (fixture.holds_special_text and fixture.kind == "chat")]
    equal = counted = left_out = compared = 0
    parting: Parting | None = None
    for fixture in fixtures:
        if (ids := first.encode(fixture)) is None:
            continue
        if fixture.tools and first.encode(replace(fixture, tools=())) == ids:
            left_out += 1  # the template shows no tools; a server may show them in a way of its own
            continue
        theirs = server.ids(fixture)
        count = server.count(fixture) if theirs is None else len(theirs)
        if count is None and _may_be_refused(fixture):
            left_out += 1
            continue
        compared += 1
        counted += theirs is None and count is not None
        if theirs == ids or (theirs is None and count == len(ids)):
            equal += 1
        elif parting is None:
            parting = _miscounted(fixture, len(ids), count) if theirs is None else parting_of(fixture, ids, theirs)
    measured = f"{equal} of {compared} texts and conversations equal" if compared else "the server tells none of them"
    measured += f"; of {counted} the server tells their number only" if counted else ""
    measured += (
        f"; {left_out} left out (tools the template does not show, or not read by the server)" if left_out else ""
    )
    measured += f"; its last refusal: {server.refusals[-1]}" if left_out and server.refusals else ""
    result = verdict(equal == compared) if compared else "not compared"
    return Check(name="token ids", measured=measured, bound="all", verdict=result), parting


def _may_be_refused(fixture: Fixture) -> bool:
    """Whether a server without /tokenize has no way to read it, or one that knows its tools by name may not want to."""
    return bool(fixture.tools) or fixture.text is not None or not fixture.add_generation_prompt


def _miscounted(fixture: Fixture, ours: int, theirs: int | None) -> Parting:
    told = "the server refuses it" if theirs is None else f"{ours} ids against {theirs}"
    return Parting(where=f"chat '{fixture.name}'", token_index=0 if theirs is None else min(ours, theirs), detail=told)


def _prompts(encoded: Encoded) -> Encoded:
    return [item for item in encoded if item[0].kind == "chat"] or encoded


def _scored(first: Form, server: Server, encoded: Encoded, windows: Sequence[Window]) -> list[SequenceDivergence]:
    """Everything that the server scores; empty when it does not score the first."""
    inputs = [(f"{fixture.kind} '{fixture.name}'", ids, False) for fixture, ids in encoded if len(ids) > 1]
    inputs += [(window.name, window.ids, True) for window in windows]
    found: list[SequenceDivergence] = []
    for name, ids, is_text in inputs:
        scores = server.scores(ids)
        if scores is None and not found:
            return []
        if scores is None:
            continue
        told = [(score.following, score.top) for score in scores]
        found.append(compare_logprobs(name, ids, first.logits(ids), told, is_text=is_text))
    return found


def _along_answers(
    first: Form,
    answers: Answers,
    continued: Sequence[tuple[int, ...]],
) -> list[SequenceDivergence]:
    """What the server finds likely while it writes, as long as it writes what the first form does."""
    found = []
    for (fixture, prompt, answer), ours in zip(answers, continued, strict=True):
        told = []
        for (index, top), our_id in zip(answer.steps if answer else (), ours, strict=False):
            told.append((None, top))
            if index != our_id:
                break
        if told and NO_ID not in ours:
            ids = (*prompt, *ours[: len(told)])
            name = f"continuing '{fixture.name}'"
            logits = first.logits(ids)
            found.append(compare_logprobs(name, ids, logits, told, start=len(prompt) - 1, is_text=False))
    return found


def _numbers(
    sequences: Sequence[SequenceDivergence], bounds: Bounds, *, scored: bool
) -> tuple[list[Check], Parting | None]:
    if not sequences:
        names = ("log probabilities", "KL divergence", "perplexity")
        return [Check(name=name, measured=NO_SCORES, bound="-", verdict="not compared") for name in names], None
    tolerance = logit_tolerance(sequences, bounds)
    tolerance = None if tolerance is None else 2 * tolerance  # each of a logit and of the sum over all
    difference = largest_difference(sequences)
    positions = sum(len(sequence.difference_T) for sequence in sequences)
    place = "" if scored else ", along its own answers: it scores no prompt"
    logprobs = Check(
        name="log probabilities",
        measured=f"largest difference {difference:.2g} over {positions:,} positions{place}",
        bound="-" if tolerance is None else f"{tolerance:.2g}",
        verdict="reported" if tolerance is None else verdict(difference <= tolerance),
    )
    perplexity = perplexity_check(sequences, bounds)
    if not scored:
        reason = "the server gives no log probabilities of a prompt (echo)"
        perplexity = Check(name="perplexity", measured=reason, bound="-", verdict="not compared")
    checks = [logprobs, kl_check(sequences, bounds, note="; at least so much, by the likeliest ids"), perplexity]
    if all(check.verdict != "different" for check in checks):
        return checks, None
    sequence, at = worst_position(sequences, tolerance)
    detail = f"log probabilities differ by {sequence.difference_T[at]:.2g}, KL {sequence.kl_T[at]:.2g} nats"
    token = sequence.start + at
    return checks, Parting(
        where=sequence.name,
        token_index=token,
        detail=detail,
        is_first=tolerance is not None,
        before=sequence.ids[:token],
    )


def _greedy(
    first: Form,
    answers: Answers,
    continued: Sequence[tuple[int, ...]],
    tolerance: float | None,
    *,
    judged: bool,
) -> tuple[Check, Parting | None]:
    """The text that both write, up to where the first form would stop."""
    same = ties = compared = 0
    parting: Parting | None = None
    for (fixture, prompt, answer), ids in zip(answers, continued, strict=True):
        if answer is None:
            continue
        compared += 1
        ends = _until_stop(first, ids)
        ours, theirs = _text(first, ends[: len(ids) - SPARE]), _plain(first, answer.text)
        if theirs.startswith(ours) and _text(first, ends).startswith(theirs):
            same += 1
            continue
        at = _first_difference(first, ids, theirs)
        if tolerance is not None and at < len(ids) and _is_near_tie(first, (*prompt, *ids[:at]), tolerance):
            ties += 1
        elif parting is None and judged:
            detail = f"text {ours[:40]!r} against {theirs[:40]!r}"
            place = f"continuing '{fixture.name}'"
            before = (*prompt, *ids[:at])
            parting = Parting(where=place, token_index=len(before), detail=detail, before=before)
    if not compared:
        measured = "the server takes no token ids as a prompt, and reads text into others"
        return Check(name="greedy text", measured=measured, bound="-", verdict="not compared"), None
    measured = f"{same} of {compared} continuations have equal text" + (f"; {ties} part at a tie" if ties else "")
    return Check(
        name="greedy text",
        measured=measured,
        bound="all, ties apart" if judged else "-",
        verdict=verdict(same + ties == compared) if judged else "reported",
    ), parting


def _until_stop(form: Form, ids: tuple[int, ...]) -> tuple[int, ...]:
    ends = form.stops.declared | form.stops.implied
    return ids[: next((at for at, index in enumerate(ids) if index in ends), len(ids))]


def _text(form: Form, ids: Sequence[int]) -> str:
    return _plain(form, form.own_tokenizer.decode([index for index in ids if index != NO_ID]))


def _plain(form: Form, text: str) -> str:
    """Without special tokens, which servers leave out or not, and without what is no whole character."""
    for token in form.own_tokenizer.special_ids:
        text = text.replace(token, "")
    return text.replace("\ufffd", "")


def _first_difference(form: Form, ids: tuple[int, ...], theirs: str) -> int:
    """The first id whose text is not the server's."""
    return next((at for at in range(len(ids)) if not theirs.startswith(_text(form, ids[: at + 1]))), len(ids))


def _is_near_tie(form: Form, ids: tuple[int, ...], tolerance: float) -> bool:
    best = form.logits(ids)[-1].topk(2).values
    return bool(best[0] - best[1] <= 2 * tolerance)
