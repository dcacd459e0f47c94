"""Token shards: documents tokenized once, memory-mapped ever after.

A directory of numpy files that any program can read:

    <name>.tokens.npy    the ids of some documents end to end, uint16 where the vocabulary allows, else uint32
    <name>.offsets.npy   int64: where each document begins, and the end of the last
    <name>.json          their lengths and SHA-256, written last: a shard without it does not exist
    index.json           the names in order, and how the files looked that were read; written when all are there

A shard's name is the hash of everything that decides its content: the tokenizer, the options, the texts. So building
again finds what is there under its name: after a kill it goes on, after a change only changed parts are tokenized anew,
and if nothing changed nothing is. Every document is followed by EOS.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leveret.data.examples import Document
from leveret.data.files import look_of
from leveret.errors import DataError
from leveret.paths import atomic_write, sha256_file
from leveret.tokenizer.files import Tokenizer

SHARD_CHARACTERS = 8_000_000
"""Text that goes into one shard: what a killed run may have to tokenize again."""

BATCH_CHARACTERS = 1_000_000
"""Text that is tokenized at once: what the tokenizer says of a token takes a hundred times the memory of its id."""

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What `<name>.json` says."""

    num_tokens: int
    num_documents: int
    num_bytes: int
    """UTF-8 bytes of the texts, for bits per byte."""
    tokens_sha256: str
    offsets_sha256: str


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build did."""

    num_shards: int
    num_reused: int
    num_repaired: int
    """Damaged files that were written anew."""


class TokenShards:
    """The documents of a shard directory as one long sequence of tokens."""

    def __init__(
        self, directory: Path, names: Sequence[str], records: Sequence[ShardRecord], *, report: BuildReport
    ) -> None:
        self.directory = directory
        self.report = report
        self._records = list(records)
        self._arrays = [_open(directory, name, record) for name, record in zip(names, records, strict=True)]
        self._starts = np.cumsum([0, *(record.num_tokens for record in records)])
        self.fingerprint = hashlib.sha256("\n".join(names).encode()).hexdigest()

    @classmethod
    def open(cls, directory: str | Path, *, verify: bool = False) -> TokenShards:
        """Open what `build_shards` wrote. Lengths are always checked, contents with `verify`; DataError if wrong."""
        directory = Path(directory)
        names = _read_index(directory)
        records = [_read_record(directory, name) for name in names]
        report = BuildReport(num_shards=len(names), num_reused=len(names), num_repaired=0)
        shards = cls(directory, names, records, report=report)
        if verify:
            for name, record in zip(names, records, strict=True):
                if not _is_intact(directory, name, record):
                    raise _damaged(directory / f"{name}.tokens.npy", "its SHA-256 is not the recorded one")
        return shards

    @property
    def num_tokens(self) -> int:
        """All tokens, EOS included."""
        return int(self._starts[-1])

    @property
    def num_documents(self) -> int:
        """All documents."""
        return sum(record.num_documents for record in self._records)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(record.num_bytes for record in self._records)

    @cached_property
    def document_offsets(self) -> NDArray[np.int64]:
        """(num_documents + 1,) where each document begins in the whole sequence, and the end of the last."""
        offsets = [
            start + np.asarray(shard_offsets[:-1])
            for start, (_, shard_offsets) in zip(self._starts[:-1], self._arrays, strict=True)
        ]
        return np.concatenate([*offsets, self._starts[-1:]]).astype(np.int64)

    def document(self, index: int) -> NDArray[Any]:
        """The ids of one document, EOS included."""
        return self.tokens(int(self.document_offsets[index]), int(self.document_offsets[index + 1]))

    def tokens(self, start: int, stop: int) -> NDArray[Any]:
        """The ids from `start` to before `stop` of the whole sequence."""
        pieces = []
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            tokens, begin = self._arrays[shard][0], int(self._starts[shard])
            end = min(stop, begin + len(tokens))
            pieces.append(tokens[start - begin : end - begin])
            start, shard = end, shard + 1
        if not pieces:
            return np.zeros(0, np.uint32)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def build_shards(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    add_bos: bool = False,
    shard_characters: int = SHARD_CHARACTERS,
    source: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenShards:
    """Tokenize `documents` into `directory`, keeping the shards that are already right.

    source: the file or folder that the documents are read from. `on_progress(documents, tokens)` is called after each
    shard. DataError if there is no document, which names their `source`; TokenizerError if the tokenizer has no EOS (or
    no BOS, with `add_bos`).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"format": _FORMAT, "tokenizer": tokenizer.fingerprint, "add_bos": add_bos}
    look = None if source is None else look_of(source)
    names: list[str] = []
    records: list[ShardRecord] = []
    num_reused = num_repaired = 0
    for texts in _batches((document.text for document in documents), shard_characters):
        name = _name(settings, texts)
        found = (directory / f"{name}.json").is_file()
        record = _intact_record(directory, name, texts) if found else None
        num_reused += record is not None
        num_repaired += found and record is None
        names.append(name)
        records.append(record or _write(directory, name, texts, tokenizer, add_bos))
        if on_progress is not None:
            on_progress(sum(r.num_documents for r in records), sum(r.num_tokens for r in records))
    if not names:
        raise DataError(
            "there are no documents to tokenize", path=source,
            hint="is it the right place? take out of the config what is empty",
        )  # fmt: skip
    index = {"format": _FORMAT, "shards": names, "source_look": look}
    atomic_write(directory / "index.json", json.dumps(index, indent=1) + "\n")
    _remove_others(directory, set(names))
    report = BuildReport(num_shards=len(names), num_reused=num_reused, num_repaired=num_repaired)
    return TokenShards(directory, names, records, report=report)


def _batches(texts: Iterable[str], num_characters: int) -> Iterator[list[str]]:
    """The texts in lists that have so many characters, or a text more."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= num_characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _name(settings: dict[str, Any], texts: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:24]


def _write(directory: Path, name: str, texts: Sequence[str], tokenizer: Tokenizer, add_bos: bool) -> ShardRecord:
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    ids = [
        np.array(document, dtype)
        for batch in _batches(texts, BATCH_CHARACTERS)
        for document in tokenizer.encode_batch(batch, add_bos=add_bos, add_eos=True)
    ]
    offsets = np.cumsum([0, *(len(document) for document in ids)], dtype=np.int64)
    tokens = np.concatenate(ids)
    hashes = [
        _write_array(directory / f"{name}.{part}.npy", a) for part, a in (("tokens", tokens), ("offsets", offsets))
    ]
    record = ShardRecord(
        num_tokens=len(tokens),
        num_documents=len(ids),
        num_bytes=_num_bytes(texts),
        tokens_sha256=hashes[0],
        offsets_sha256=hashes[1],
    )
    atomic_write(directory / f"{name}.json", json.dumps(asdict(record), indent=1) + "\n")
    return record


def _write_array(path: Path, array: NDArray[Any]) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    atomic_write(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _open(directory: Path, name: str, record: ShardRecord) -> tuple[NDArray[Any], NDArray[Any]]:
    arrays = []
    for part, length in (("tokens", record.num_tokens), ("offsets", record.num_documents + 1)):
        path = directory / f"{name}.{part}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error)) from error
        if array.shape != (length,):
            raise _damaged(path, f"it has {array.shape} entries, not {length}")
        arrays.append(array)
    return arrays[0], arrays[1]


def _intact_record(directory: Path, name: str, texts: Sequence[str]) -> ShardRecord | None:
    """The record of a shard of these texts; None when the shard is damaged, or the record counts it wrong."""
    try:
        record = _read_record(directory, name)
        _open(directory, name, record)  # as many documents and tokens as it says
        is_whole = record.num_bytes == _num_bytes(texts) and _is_intact(directory, name, record)
        return record if is_whole else None
    except (DataError, OSError):
        return None


def _num_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _is_intact(directory: Path, name: str, record: ShardRecord) -> bool:
    return (
        sha256_file(directory / f"{name}.tokens.npy") == record.tokens_sha256
        and sha256_file(directory / f"{name}.offsets.npy") == record.offsets_sha256
    )


def _read_record(directory: Path, name: str) -> ShardRecord:
    path = directory / f"{name}.json"
    try:
        return ShardRecord(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def _read_index(directory: Path) -> list[str]:
    path = directory / "index.json"
    if not path.is_file():
        raise DataError(f"there are no finished token shards in {directory}", hint="run the command that makes them")
    try:
        index = json.loads(path.read_text("utf-8"))
        return [str(name) for name in index["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def _remove_others(directory: Path, names: set[str]) -> None:
    """Remove shards of earlier builds, which nothing refers to any more."""
    for path in directory.glob("*.json"):
        if path.name != "index.json" and path.stem not in names:
            for suffix in (".json", ".tokens.npy", ".offsets.npy"):
                path.with_name(path.stem + suffix).unlink(missing_ok=True)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"this token shard is damaged: {reason}", path=path, hint="tokenize again: only it will be rebuilt"
    )
