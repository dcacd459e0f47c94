"""Between the scheduler and the model: what is fed in a turn, which logits are wanted, and which ids come of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from leveret.engine.sampler import no_numbers
from leveret.engine.scheduler import Turn
from leveret.model.paged_cache import Feed


def choose(turn: Turn, logits: Tensor, likeliest: Sequence[int | None], first: int = 0) -> tuple[list[int], int]:
    """The ids that a row appends, and how many of its draft were among them in the right places.

    Its logits, and of each the likeliest id (None where they are no numbers), are those from place `first` on.

    The row chooses after each id as it always does; a draft that says the same has only saved a step. So whatever is
    drafted, the row takes the ids, draws the numbers and follows the distribution that it would without.
    """
    row, taken, right = turn.row, list[int](), 0
    while row.finish_reason is None and right == len(taken):
        place = first + right
        chosen = likeliest[place] if row.sampler.plain else row.sampler.choose(logits[place])
        if chosen is None:
            raise no_numbers()
        taken += row.take(chosen)
        while right < min(len(taken), len(turn.draft)) and taken[right] == turn.draft[right]:
            right += 1
    return taken, right


def feed(turn: Turn) -> Feed:
    """What the model reads in a turn: pending ids, then the draft."""
    row = turn.row
    ids = row.ids[row.num_cached : row.num_cached + turn.count]
    return Feed(
        ids=(*ids, *turn.draft),
        start=row.num_cached,
        table=row.table,
        planned_length=row.planned_length,
        chosen_from=len(row.request.prompt_ids),
        model=row.model,
    )


def num_wanted(turn: Turn) -> int:
    """After how many of the last ids of a turn the logits are needed."""
    return 0 if turn.count < turn.row.num_pending else 1 + len(turn.draft)
