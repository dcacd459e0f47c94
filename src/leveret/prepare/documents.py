"""The texts of `prepare`: gathered, cut down to a size, divided into what is trained on and what is held out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
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


def gather(config: PrepareConfig, console: Console) -> list[Document]:
    """The documents to keep: all, or a seeded sample of `max_bytes`; equal texts are kept once."""
    documents = list(_unique(_read(config, console), console))
    random.Random(f"{config.seed}/documents").shuffle(documents)
    kept, num_bytes = [], 0
    for document in documents:
        size = len(document.text.encode())
        if num_bytes + size <= config.max_bytes:
            kept.append(document)
            num_bytes += size
    if documents and not kept:
        raise DataError(
            f"none of {len(documents):,} documents fits into max_bytes ({config.max_bytes:,})",
            hint="raise max_bytes, or split the documents",
        )
    if len(kept) < len(documents):
        console.info(f"kept {len(kept):,} of {len(documents):,} documents: {num_bytes:,} bytes; the limit is max_bytes")
    return kept


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
