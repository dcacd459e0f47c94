"""The texts of `prepare`: gathered, cut down to a size, divided into what is trained on and what is held out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from leveret.console import Console
from leveret.data.examples import Document
from leveret.data.files import ReadReport
from leveret.data.readers import read_documents
from leveret.data.split import is_held_out, place
from leveret.data.standard_library import standard_library_documents
from leveret.errors import DataError
from leveret.paths import atomic_write
from leveret.prepare.config import PrepareConfig
from leveret.segment.words import beginning

MOST_CUT, LEAST_CUT_BYTES = 8, 64
"""Where hardly a whole document fits into `max_bytes`: how many are cut, and to what at least."""


def gather(config: PrepareConfig, console: Console) -> list[Document]:
    """The documents to keep: all, or a seeded sample of `max_bytes`; equal texts are kept once.

    A sample has whole documents, or the beginnings of some where hardly one is short enough. DataError when documents
    are named and none of them holds a text.
    """
    documents = list(_unique(_read(config, console), console))
    if config.documents and not documents:
        raise DataError(
            f"there is no text in {', '.join(map(str, config.documents))}",
            hint="name other documents, or leave them out",
        )
    random.Random(f"{config.seed}/documents").shuffle(documents)
    kept, num_bytes = [], 0
    for document in documents:
        size = len(document.text.encode())
        if num_bytes + size <= config.max_bytes:
            kept.append(document)
            num_bytes += size
    if len(kept) < min(len(documents), 2 if config.validation_share else 1):
        return _beginnings(documents, config.max_bytes, console)
    if len(kept) < len(documents):
        console.info(f"kept {len(kept):,} of {len(documents):,} documents: {num_bytes:,} bytes; the limit is max_bytes")
    return kept


def _beginnings(documents: Sequence[Document], max_bytes: int, console: Console) -> list[Document]:
    """The beginnings of a few documents that are too long to be kept whole, as a rehearsal on books needs them."""
    number = min(len(documents), MOST_CUT)
    size = max_bytes // number
    if size < LEAST_CUT_BYTES:
        raise DataError(
            f"hardly one of {len(documents):,} documents fits into max_bytes ({max_bytes:,})",
            hint="raise max_bytes, or split the documents",
        )
    console.warn(
        f"hardly one of {len(documents):,} documents fits into max_bytes ({max_bytes:,}): "
        f"kept the first {size:,} bytes of {number:,}"
    )
    cut = [replace(document, text=beginning(document.text, size)) for document in documents[:number]]
    return [document for document in cut if document.text.strip()]


def divide(documents: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Documents to train on and documents to validate with, never two copies of a text on different sides.

    About `share` of them is held out; if that is none of a small number, the one whose hash comes first. DataError if
    none is left to train on.
    """
    if not share or not documents:
        return documents, []
    valid = [document for document in documents if is_held_out(document.text, share)]
    if not valid:
        places = [place(document.text) for document in documents]
        valid = [document for document, one in zip(documents, places, strict=True) if one == min(places)]
    held_out = {document.text for document in valid}
    train = [document for document in documents if document.text not in held_out]
    if not train:
        raise DataError(
            f"{len(documents)} documents are too few to hold some out",
            hint="give more documents (split long texts), or set validation_share=0",
        )
    return train, valid


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """One JSON object a line, as `read_documents` reads them."""
    lines = (json.dumps({"text": d.text, "source": d.source}, ensure_ascii=False) for d in documents)
    atomic_write(path, "".join(line + "\n" for line in lines))


def _read(config: PrepareConfig, console: Console) -> Iterator[Document]:
    if config.documents:
        report = ReadReport()
        yield from read_documents(config.documents, report)
        for line in report.lines():
            console.info(line)
    if config.standard_library:
        yield from standard_library_documents()


def _unique(documents: Iterable[Document], console: Console) -> Iterator[Document]:
    seen: set[str] = set()
    num_copies = 0
    for document in documents:
        if document.text in seen:
            num_copies += 1
            continue
        seen.add(document.text)
        yield document
    if num_copies:
        console.info(f"left out {num_copies:,} copies of documents")
