"""Train and validation texts, divided so that no text is in both.

The side a text falls on is decided by a hash of the text itself, so every copy of it falls on the same side, whatever
file it is in, and stays there when texts are added. Copies that differ only in case, width or spacing count as copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from leveret.data.examples import Document
from leveret.errors import DataError
from leveret.segment.words import normalize


def is_held_out(text: str, fraction: float, *, seed: int = 0) -> bool:
    """Whether `text` belongs to the `fraction` of texts that is kept for validation."""
    return place(text, seed=seed) < fraction * 2**64


def place(text: str, *, seed: int = 0) -> int:
    """Where between 0 and 2^64 `text` and its copies stand; the texts that are held out stand in front."""
    content = f"{seed}\n{' '.join(normalize(text).split())}"
    digest = hashlib.sha256(content.encode()).digest()
    return int.from_bytes(digest[:8], "big")


def split_documents(
    documents: Iterable[Document], fraction: float, *, seed: int = 0
) -> tuple[list[Document], list[Document]]:
    """The documents to train on and those held out; DataError if either side is empty."""
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction must lie between 0 and 1, not {fraction}")
    train: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        (held_out if is_held_out(document.text, fraction, seed=seed) else train).append(document)
    if not train or not held_out:
        raise DataError(
            f"{len(train) + len(held_out)} documents are too few to hold out {fraction:.1%} of them",
            hint="give more documents (split long texts), or another fraction",
        )
    return train, held_out
