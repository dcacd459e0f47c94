"""Stop ids: do two forms end a reply at the same tokens?

A model whose end-of-turn id is lost on the way writes on and on, and no logit shows it. Each form says at which ids the
model's files make it stop, and at which its reader would stop by itself (the template's end of a reply, as our server
and llama.cpp do). What one form's files name must end a reply in the other, and nothing ends one that is ordinary text:
llama.cpp takes token 11 for the end where a file names none, which in most vocabularies is a comma.
"""

from __future__ import annotations

from leveret.certify.findings import Check
from leveret.certify.form import Form


def compare_stops(first: Form, second: Form) -> Check:
    """The check; `reported` where only what a reader adds by itself differs."""
    ours, theirs = first.stops, second.stops
    lost = ours.declared - theirs.declared - theirs.implied
    added = theirs.declared - ours.declared - ours.implied
    alone = theirs.implied - ours.implied - ours.declared
    added |= frozenset(index for index in alone if not first.own_tokenizer.is_special(index))
    unsure = (ours.declared | ours.implied) ^ (theirs.declared | theirs.implied)
    parts = [f"both end a reply at {_listed(first, ours.declared | theirs.declared)}"] if not (lost or added) else []
    parts += [f"the second does not end a reply at {_listed(first, lost)}"] if lost else []
    parts += [f"only the second ends one at {_listed(first, added)}"] if added else []
    if unsure - lost - added:
        parts.append(f"by its reader's own rules, one alone also ends it at {_listed(first, unsure - lost - added)}")
    return Check(
        name="stop ids",
        measured="; ".join(parts),
        bound="equal",
        verdict="different" if lost or added else "same" if ours.declared or theirs.declared else "reported",
    )


def _listed(form: Form, ids: frozenset[int]) -> str:
    if not ids:
        return "no token"
    return ", ".join(f"{index} {form.own_tokenizer.decode([index])!r}" for index in sorted(ids)[:4]) + (
        f" and {len(ids) - 4} more" if len(ids) > 4 else ""
    )
