"""Did you mean: the nearest known name to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def mistyped(name: str, choices: Iterable[str]) -> str | None:
    """The choice that `name` is, but for a letter or two or its case; None when it is one, or may well be another."""
    known = {_plain(choice): choice for choice in choices}
    near = difflib.get_close_matches(_plain(name), list(known), n=1, cutoff=0.8)
    return known[near[0]] if near and known[near[0]] != name else None


def suggest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like `name` (case, dashes and underscores aside), or None when none is near."""
    known = {_plain(choice): choice for choice in choices}
    near = difflib.get_close_matches(_plain(name), list(known), n=1, cutoff=0.6)
    if near:
        return known[near[0]]
    longer = [choice for plain, choice in known.items() if len(name) >= 3 and _plain(name) in plain]
    return min(longer, key=len) if longer else None


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
