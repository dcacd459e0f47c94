"""Greedy text: do two forms write the same continuations?

The engine with its KV cache writes ours and `generate` writes transformers', so this checks caches and positions as
well. Once one id differs, everything after it does, so each continuation is compared up to there. Where the two
choices were equally good within rounding it is a tie, and no fault of either.
"""

from __future__ import annotations

from leveret.certify.findings import Check, Parting, verdict
from leveret.certify.form import NO_ID, Form
from leveret.certify.token_ids import Encoded


def compare_greedy(
    first: Form, second: Form, encoded: Encoded, greedy_tokens: int, tolerance: float | None
) -> tuple[Check, Parting | None]:
    """Continue every conversation (every text, where there is no template); the check, and the first difference.

    tolerance: how much logits of the same weights may differ; None: the kind of pair is not judged by greedy text.
    """
    chosen = [item for item in encoded if item[0].kind == "chat"] or encoded
    prompts = [ids for _, ids in chosen]
    continued = [form.continue_greedily(prompts, greedy_tokens) for form in (first, second)]
    same = ties = agreed = 0
    parting: Parting | None = None
    for (fixture, prompt), ours, theirs in zip(chosen, *continued, strict=True):
        at = next((index for index in range(len(ours)) if ours[index] != theirs[index]), len(ours))
        agreed += at
        if at == len(ours):
            same += 1
        elif tolerance is not None and _is_tie(first, (*prompt, *ours[:at]), (ours[at], theirs[at]), tolerance):
            ties += 1
        elif tolerance is not None and parting is None:
            detail = f"generated id {ours[at]} against {theirs[at]}"
            before = (*prompt, *ours[:at])
            place = f"continuing '{fixture.name}'"
            parting = Parting(where=place, token_index=len(before), detail=detail, before=before)
    measured = f"{same} of {len(chosen)} continuations of {greedy_tokens} ids equal"
    measured += f", {agreed / (greedy_tokens * len(chosen)):.1%} of ids before they part"
    measured += f"; {ties} part at a tie" if ties else ""
    check = Check(
        name="greedy text",
        measured=measured,
        bound="-" if tolerance is None else "all, ties apart",
        verdict="reported" if tolerance is None else verdict(same + ties == len(chosen)),
    )
    return check, parting


def _is_tie(form: Form, ids: tuple[int, ...], choices: tuple[int, int], tolerance: float) -> bool:
    """Whether the two choices were equally good to the first form, within what two logits may differ by."""
    if NO_ID in choices:
        return False
    logits = form.logits(ids)[-1]
    return bool((logits[choices[0]] - logits[choices[1]]).abs() <= 2 * tolerance)
