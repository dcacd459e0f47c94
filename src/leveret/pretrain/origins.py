"""Where the text of a row comes from: its documents' files and lines, found by reading the data again.

Shards hold tokens and know nothing of files; the same shards may even stand for text that has moved. But documents
come in the same order every time, so the number of a document leads back to its place. Reading stops at the last
document asked for, or after some seconds in a large corpus: a report is not worth a long pause.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from leveret.data.examples import Document
from leveret.data.packing import StreamRows

MOST_SECONDS = 20.0


class Origins:
    """Looks up rows of a pretraining run.

    sources: the rows of each source, and a function that reads its documents from the beginning.
    """

    def __init__(
        self,
        sources: Sequence[tuple[StreamRows, Callable[[], Iterator[Document]]]],
        *,
        most_seconds: float = MOST_SECONDS,
    ) -> None:
        self._sources = list(sources)
        self.most_seconds = most_seconds

    def __call__(self, keys: Sequence[str]) -> Mapping[str, list[str]]:
        """The keys of rows -> the keys of their documents, for those that were found in time."""
        until = time.monotonic() + self.most_seconds
        found: dict[str, list[str]] = {}
        for rows, read in self._sources:
            wanted = {key: rows.documents(index) for key in keys if (index := rows.index_of(key)) is not None}
            if not wanted:
                continue
            places = _places({number for numbers in wanted.values() for number in numbers}, read(), until)
            for key, numbers in wanted.items():
                if all(number in places for number in numbers):
                    found[key] = [places[number] for number in numbers]
        return found


def _places(numbers: set[int], documents: Iterator[Document], until: float) -> dict[int, str]:
    """Where the documents of these numbers come from, as far as there is time."""
    places: dict[int, str] = {}
    last = max(numbers, default=-1)
    for number, document in enumerate(documents):
        if number in numbers:
            places[number] = document.source
        if number >= last or time.monotonic() > until:
            break
    return places
