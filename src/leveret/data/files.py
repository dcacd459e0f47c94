"""Data files: which there are below a path, and their records one by one, each with its place.

Plain text, JSON Lines and JSON lists, also compressed (.gz, .zst). A file that is named must be readable; in a folder,
files of other kinds, texts that are not UTF-8, hidden files and folders that are links are left out and counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from leveret.data.unpacking import COMPRESSED_SUFFIXES, open_text, unpacking_errors
from leveret.errors import ConfigError, DataError

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".rst", ".py", ".pyi", ".c", ".h", ".html", ".tex"})
RECORD_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})

_TOO_DEEP = "this is JSON with too many brackets inside each other"


@dataclass(kw_only=True)
class ReadReport:
    """What was read, what was inferred, and what was left out. Handed to a reader, which counts in it."""

    num_files: int = 0
    num_records: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    """Records by the format they were recognised as."""
    dropped: Counter[str] = field(default_factory=Counter)
    """What was left out, by reason."""
    unread: Counter[str] = field(default_factory=Counter)
    """Keys of messages that nobody reads, by name (unread_keys.py)."""
    first_unread: str | None = None
    """Where the first of them stood: `path:line`."""
    num_split: int = 0
    """Conversations that were divided, being too long."""
    num_parts: int = 0
    """What they were divided into."""

    def lines(self) -> list[str]:
        """The report for people."""
        formats = ", ".join(f"{count:,} {name}" for name, count in self.formats.most_common())
        first = f"{self.num_records:,} records from {self.num_files:,} files" + (f" ({formats})" if formats else "")
        split = [f"split {self.num_split:,} long conversations into {self.num_parts:,} parts"] if self.num_split else []
        return [first, *split, *(f"left out {count:,}: {reason}" for reason, count in self.dropped.most_common())]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One JSON object of a file."""

    fields: dict[str, Any]
    path: Path
    line: int
    """Its line (JSON Lines) or its number in the list (JSON), from 1."""

    @property
    def key(self) -> str:
        """`path:line`."""
        return f"{self.path}:{self.line}"

    def error(self, message: str, hint: str | None = None) -> DataError:
        """A DataError at this record's place."""
        return DataError(message, path=self.path, line=self.line, hint=hint)


def kind_of(path: Path) -> str | None:
    """The suffix that says what a file holds, below a compression suffix; None for a kind that is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    return suffix if suffix in TEXT_SUFFIXES | RECORD_SUFFIXES else None


def data_files(paths: str | Path | Sequence[str | Path], report: ReadReport) -> Iterator[tuple[Path, bool]]:
    """Every file to read, in a fixed order, and whether it was named itself (not found in a folder)."""
    for path in [Path(paths)] if isinstance(paths, str | Path) else map(Path, paths):
        if path.is_file():
            if kind_of(path) is None:
                known = ", ".join(sorted(TEXT_SUFFIXES | RECORD_SUFFIXES))
                raise DataError(
                    "this kind of file is not read", path=path, hint=f"known are {known}, also .gz and .zst"
                )
            yield path, True
        elif path.is_dir():
            for inner in sorted(path.rglob("*")):
                if (reason := _why_not(inner, path)) is not None:
                    report.dropped[reason] += 1
                elif inner.is_file():
                    yield inner, False
        else:
            raise DataError("there is no such file or folder", path=path)


def look_of(path: Path) -> str:
    """A digest of the names, sizes and times of the files to read: another one means that what is read may be another.

    DataError when there is no such path.
    """
    look = hashlib.sha256()
    for file, _ in data_files(path, ReadReport()):
        status = file.stat()
        look.update(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return look.hexdigest()


def refuse_output_within(paths: Sequence[Path], output: Path) -> None:
    """ConfigError when a folder that is read holds the one that is written: the next run would read both."""
    for path in paths:
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise ConfigError(
                f"the output {output} lies in {path}, which is read: the next run would read what this one writes",
                hint="choose an output folder outside of the data",
            )


def _why_not(inner: Path, folder: Path) -> str | None:
    """Why a file or link found in `folder` is not read; None for one that is, and for plain folders."""
    if inner.is_dir():
        return "folders that are links (named themselves they are read)" if inner.is_symlink() else None
    if not inner.is_file():
        return "links to nowhere"
    if any(part.startswith(".") for part in inner.relative_to(folder).parts):
        return "hidden files"
    return "files of a kind that is not read" if kind_of(inner) is None else None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A file to read as text, unpacked if it is compressed. DataError, also while it is read, if it is not UTF-8, or
    damaged. Lines end at a line feed and nowhere else.
    """
    try:
        try:
            with open_text(path) as file:
                yield file
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error
    except unpacking_errors(path) as error:
        raise DataError(
            f"this file cannot be unpacked: {error}", path=path,
            hint=f"it is cut short or damaged, or not what {path.suffix} says: fetch it again",
        ) from error  # fmt: skip


def _not_utf8(path: Path) -> DataError:
    """What to say of a file, at the line that cannot be decoded: a decoder knows the place within its buffer only."""
    message, hint = "this file is not UTF-8", "convert it first"
    with open_text(path) as file:
        for number, line in enumerate(file.buffer, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                place = f"{error.reason} at byte {error.start} of the line"
                return DataError(f"{message}: {place}", path=path, line=number, hint=hint)
    return DataError(message, path=path, hint=hint)


def read_text(path: Path) -> str:
    """The whole text of a file; DataError if it is not UTF-8, or damaged."""
    with opened(path) as file:
        return file.read()


def read_records(path: Path) -> Iterator[Record]:
    """The JSON objects of a .jsonl or .json file; DataError at the place of anything else."""
    if kind_of(path) == ".json":
        yield from _records_of_list(path)
        return
    for number, value in read_lines(path):
        yield _record(value, path, number)


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """What the lines of a .jsonl file hold, each with its number; DataError at the line that is not JSON."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse(line, path, number)


def _records_of_list(path: Path) -> Iterator[Record]:
    content = read_text(path)
    try:
        items = json.loads(content)
    except ValueError as error:
        if "Extra data" in str(error):  # JSON Lines under the name .json, as many data sets come
            for number, line in enumerate(content.split("\n"), start=1):
                if line.strip():
                    yield _record(_parse(line, path, number), path, number)
            return
        raise DataError(f"this is not valid JSON: {error}", path=path) from error
    except RecursionError as error:
        raise DataError(_TOO_DEEP, path=path) from error
    items = items if isinstance(items, list) else [items]
    for number, item in enumerate(items, start=1):
        yield _record(item, path, number)


def _parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        hint = None
        if line.lstrip().startswith("["):
            hint = "a JSON list belongs in a file named .json; .jsonl has one object on each line"
        raise DataError(f"this line is not valid JSON: {error}", path=path, line=number, hint=hint) from error
    except RecursionError as error:
        raise DataError(_TOO_DEEP, path=path, line=number) from error


def _record(item: Any, path: Path, number: int) -> Record:
    if not isinstance(item, dict):
        raise DataError(f"a record must be a JSON object, not {type(item).__name__}", path=path, line=number)
    return Record(fields=item, path=path, line=number)
