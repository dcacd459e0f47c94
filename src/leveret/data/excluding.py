"""Data left out by name: what somebody has looked at and does not want to be learnt.

A key is what forensic reports, X-rays and errors call a piece of data: `corpus.jsonl:12` for a line of a file, the
file's name for a text file, `train-0, row 57` for a row of a pretraining run. Every key must be found; a key that is
nowhere is an error with the nearest one there is, for a typing mistake would otherwise leave the data in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from leveret.data.files import ReadReport
from leveret.data.packing import PackedRows, Piece
from leveret.errors import DataError
from leveret.spelling import suggest

T = TypeVar("T")
R = TypeVar("R", bound=PackedRows)

_MOST_KNOWN = 20_000  # keys remembered to suggest one of them


class Exclusions:
    """The keys that are to be left out, and which of them have been found so far."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = frozenset(keys)
        self._found: set[str] = set()
        self._known: list[str] = []
        self.rows: list[str] = []
        """The keys of rows that were left out."""

    @classmethod
    def of(cls, chosen: Sequence[str] | Path) -> Exclusions:
        """From a list of keys, or a file with one key on each line (empty lines and those with # do not count)."""
        if not isinstance(chosen, Path):
            return cls(chosen)
        try:
            lines = chosen.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot be read as a list of keys: {error}", path=chosen) from error
        return cls(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))

    def without(self, items: Iterable[T], key: Callable[[T], str], report: ReadReport) -> Iterator[T]:
        """The items that are kept; those left out are counted in `report`."""
        for item in items:
            if self._leaves_out(key(item)):
                report.num_records -= 1
                report.dropped["named in exclude_rows"] += 1
            else:
                yield item

    def without_rows(self, rows: R) -> R | RowsWithout:
        """The rows that are kept: the same object when none is left out."""
        if not self.keys - self._found:
            return rows
        out = [index for index in range(len(rows)) if self._leaves_out(rows.key(index))]
        if out and len(out) == len(rows):
            raise DataError(
                f"all {len(rows):,} rows of {rows.key(0).rpartition(', row ')[0]} are named in exclude_rows",
                hint="take the whole source out of the recipe instead",
            )
        self.rows += [rows.key(index) for index in out]
        return RowsWithout(rows, sorted({*range(len(rows))} - {*out})) if out else rows

    def refuse_unknown(self) -> None:
        """DataError when a key was not found in what has been read."""
        unknown = sorted(self.keys - self._found)
        if not unknown:
            return
        near = suggest(unknown[0], self._known)
        raise DataError(
            f"exclude_rows: {len(unknown)} of {len(self.keys)} keys are not in the training data, first {unknown[0]!r}",
            hint=(f"did you mean {near!r}? " if near else "")
            + "keys are written as in forensics/ and in the X-ray, such as corpus.jsonl:12",
        )

    def _leaves_out(self, key: str) -> bool:
        if not self.keys:
            return False
        if key in self.keys:
            self._found.add(key)
            return True
        if len(self._known) < _MOST_KNOWN:
            self._known.append(key)
        return False


class RowsWithout(PackedRows):
    """Some of another object's rows, in its order and under its names."""

    def __init__(self, rows: PackedRows, kept: Sequence[int]) -> None:
        super().__init__(rows.sequence_length)
        self._rows, self._kept = rows, kept

    def __len__(self) -> int:
        return len(self._kept)

    def pieces(self, index: int, turn: int) -> list[Piece]:
        return self._rows.pieces(self._kept[index], turn)

    def key(self, index: int) -> str:
        return self._rows.key(self._kept[index])
