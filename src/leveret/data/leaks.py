"""Held-out text that is also trained on: the loss on it says nothing, so it is refused."""

from __future__ import annotations

from collections.abc import Iterable

from leveret.errors import DataError


def refuse_leaks(what: str, *, held_out: Iterable[tuple[str, bytes]], trained: Iterable[tuple[str, bytes]]) -> None:
    """DataError when something that is held out is also trained, to the letter; each is given as (name, content).

    what: what they are, in the plural.
    """
    hidden = {content: name for name, content in held_out}
    found: dict[str, str] = {}
    for name, content in trained if hidden else ():
        if (known := hidden.get(content)) is not None:
            found.setdefault(known, name)
    if found:
        first_held_out, first_trained = next(iter(found.items()))
        raise DataError(
            f"{len(found)} held-out {what} are also in the training data, first {first_held_out} = {first_trained}",
            hint="take them out of one of the two; a loss on text the model was trained on says nothing",
        )
