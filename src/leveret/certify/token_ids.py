"""Token ids: do two forms turn every animal of the zoo into the same ids?

A form may refuse a conversation: ours refuses one whose tool calls its template would silently drop, where
transformers and llama.cpp render what is left. Such fixtures are left out and counted, and so are conversations whose
user text spells a special token when one side is of those two, which make the token of it. Two forms that we read
ourselves get no such leniency, and a conversation that only the other program refuses is a difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from leveret.certify.findings import Check, Parting, verdict
from leveret.certify.form import OURS, Form
from leveret.certify.zoo import Fixture

Encoded = list[tuple[Fixture, tuple[int, ...]]]
"""Fixtures with the first form's ids, none empty."""


def compare_ids(first: Form, second: Form, fixtures: Sequence[Fixture]) -> tuple[Check, Encoded, Parting | None]:
    """The check, the first form's ids of every fixture it can encode, and the first difference."""
    encoded: Encoded = []
    compared = equal = left_out = 0
    parting: Parting | None = None
    strict = [form.reader in OURS for form in (first, second)]
    for fixture in fixtures:
        ids, other = first.encode(fixture), second.encode(fixture)
        if ids:
            encoded.append((fixture, ids))
        smuggles = fixture.holds_special_text and fixture.kind == "chat"
        refused = [ids is None, other is None]
        if all(refused) or (any(strict) and not all(strict) and (smuggles or refused[strict.index(True)])):
            left_out += 1
            continue
        compared += 1
        if ids == other:
            equal += 1
        else:
            parting = parting or parting_of(fixture, ids, other)
    measured = f"{equal} of {compared} texts and conversations equal"
    measured += f"; {left_out} left out (refused by the template, or special text in them)" if left_out else ""
    return Check(name="token ids", measured=measured, bound="all", verdict=verdict(equal == compared)), encoded, parting


def parting_of(fixture: Fixture, first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> Parting:
    """Where the ids of a fixture begin to differ."""
    where = f"{fixture.kind} '{fixture.name}'"
    if first is None or second is None:
        refuser = "first" if first is None else "second"
        return Parting(where=where, token_index=0, detail=f"the {refuser} form's template refuses it")
    shared = min(len(first), len(second))
    at = next((index for index in range(shared) if first[index] != second[index]), shared)
    sides = [f"id {ids[at]}" if at < len(ids) else "the end" for ids in (first, second)]
    return Parting(where=where, token_index=at, detail=f"{sides[0]} against {sides[1]}", before=first[:at])
