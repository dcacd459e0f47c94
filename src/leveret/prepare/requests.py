"""The requests of `prepare`: drawn from phrase books for training, and held out in new phrasings with new values."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from leveret.console import Console
from leveret.data.examples import Document
from leveret.errors import ToolError
from leveret.forked import in_processes
from leveret.garbage import without_collecting
from leveret.prepare.config import RequestsConfig
from leveret.prepare.documents import write_documents
from leveret.segment.words import normalize
from leveret.tools.ambiguity import shared_wordings
from leveret.tools.generator import Kind, RequestGenerator
from leveret.tools.made_up import made_up_rules
from leveret.tools.phrase_book import PhraseBook
from leveret.tools.requests import ToolRequest, write_requests
from leveret.tools.schema import ToolSet

SPANS = 20_000
"""Stretches of real text that requests may carry as messages or searches."""

HELD_OUT_SHARES: tuple[tuple[Kind, float], ...] = (("single", 1.0), ("combined", 1 / 3), ("irrelevant", 1 / 4))
"""Held-out requests of each kind, for each of `RequestsConfig.held_out`."""

VALUE_LINES = 10
"""Lines of a document of values; there is one such document for twice as many requests."""

DRAWN_AT_ONCE = 20_000
"""Requests between two reports of progress."""

PATIENCE = 50
"""Draws for each held-out request that is wanted, before fewer are taken."""


def prepare_requests(
    requests: RequestsConfig, documents: Sequence[Document], *, seed: int, output: Path, console: Console
) -> dict[str, int]:
    """Write the request files into `output`; returns how many of each. Only `documents` lend text to messages."""
    generators = _generators(requests, documents, seed, console)
    train = _training_requests(generators, requests, seed, console)
    write_requests(output / "requests.train.jsonl", train)
    write_documents(output / "requests.text.jsonl", _request_texts(train[: requests.as_text]))
    write_documents(output / "values.text.jsonl", _value_texts(generators, len(train), seed))
    console.info(f"requests.train.jsonl: {len(train):,} requests in {len(generators)} languages")
    counts = {"train_requests": len(train)}
    seen = {_key(request) for request in train}
    for kind, share in HELD_OUT_SHARES:
        wanted = max(1, round(requests.held_out * share))
        able = [generator for generator in generators if kind in generator.kinds]
        held_out = [request for generator in able for request in _held_out(generator, kind, wanted, seen)]
        if held_out:
            write_requests(output / f"held_out.{kind}.jsonl", held_out)
        if len(held_out) < wanted * len(generators):
            console.warn(f"only {len(held_out):,} of {wanted * len(generators):,} held-out {kind} requests can be made")
        console.info(f"held_out.{kind}.jsonl: {len(held_out):,} requests in phrasings and with values new to training")
        counts[f"held_out_{kind}"] = len(held_out)
    return counts


def _generators(
    requests: RequestsConfig, documents: Sequence[Document], seed: int, console: Console
) -> list[RequestGenerator]:
    tools = ToolSet.load(requests.tools)
    rules = made_up_rules(seed, list(_spans(documents, seed)))
    books = [PhraseBook.load(path, tools, plain_rules=rules) for path in requests.phrases]
    for book in books:
        if missing := [name for name in tools.names if name not in book.tools]:
            console.warn(f"{book.source} has no requests for {', '.join(missing)}: a model will not learn to call them")
        if shared := shared_wordings(book):
            some = "; ".join(f"{words!r} asks for {' and '.join(tools)}" for words, tools in list(shared.items())[:3])
            console.warn(
                f"{book.source}: wordings that ask for more than one tool, which a new value does not tell apart: "
                f"{len(shared):,}, such as: {some}"
            )
    generators = [RequestGenerator(book, tools, seed=seed) for book in books]
    for generator in generators:
        _check_kinds(generator, requests)
    return generators


def _check_kinds(generator: RequestGenerator, requests: RequestsConfig) -> None:
    """ToolError where a share of requests is asked for that a phrase book has nothing for."""
    needs: dict[Kind, tuple[float, str]] = {
        "combined": (requests.combined_share, "requests for two tools or more"),
        "irrelevant": (requests.irrelevant_share, "more wordings under irrelevant"),
    }
    for kind, (share, needed) in needs.items():
        if share and kind not in generator.kinds:
            raise ToolError(
                f"{generator.book.source}: no {kind} requests can be made of it",
                hint=f"it needs {needed}; or set requests.{kind}_share=0",
            )


def _training_requests(
    generators: Sequence[RequestGenerator], requests: RequestsConfig, seed: int, console: Console
) -> list[ToolRequest]:
    def draw(numbers: Sequence[int]) -> list[ToolRequest]:
        return [_training_request(generators, requests, seed, number) for number in numbers]

    drawn: list[ToolRequest] = []
    with without_collecting(), console.progress("requests", requests.train) as progress:
        while len(drawn) < requests.train:
            drawn += in_processes(draw, range(len(drawn), min(len(drawn) + DRAWN_AT_ONCE, requests.train)))
            progress.update(len(drawn))
    return drawn


def _training_request(
    generators: Sequence[RequestGenerator], requests: RequestsConfig, seed: int, number: int
) -> ToolRequest:
    """Training request `number`: the languages take turns, its kind is drawn."""
    draw = random.Random(f"{seed}/kind/{number}").random()
    kind: Kind = "single"
    if draw < requests.combined_share:
        kind = "combined"
    elif draw < requests.combined_share + requests.irrelevant_share:
        kind = "irrelevant"
    return generators[number % len(generators)].draw(kind, number // len(generators), held_out=False)


def _held_out(generator: RequestGenerator, kind: Kind, wanted: int, seen: set[str]) -> Iterator[ToolRequest]:
    """Up to `wanted` held-out requests that are not in `seen`, to which they are added."""
    found = 0
    for index in range(PATIENCE * wanted):
        if found == wanted:
            return
        request = generator.draw(kind, index, held_out=True)
        if (key := _key(request)) not in seen:
            seen.add(key)
            found += 1
            yield request


def _key(request: ToolRequest) -> str:
    """What a request says, whatever its case, spacing and punctuation."""
    return "".join(filter(str.isalnum, normalize(request.query)))


def _spans(documents: Sequence[Document], seed: int) -> Iterator[str]:
    """Stretches of two to seven words of the documents."""
    rng = random.Random(f"{seed}/spans")
    words = [document.text.split() for document in documents if len(document.text) < 200_000]
    words = [one for one in words if len(one) >= 10]
    for _ in range(SPANS if words else 0):
        text = rng.choice(words)
        start = rng.randrange(len(text) - 8)
        yield " ".join(text[start : start + rng.randrange(2, 8)])


def _request_texts(requests: Sequence[ToolRequest]) -> Iterator[Document]:
    """Requests as plain text for pretraining, each said twice: the second time can only be predicted by copying.

    A model finds out how to copy (induction heads, arXiv 2209.11895) long before it sees the calls, whose arguments are
    copies.
    """
    for number, request in enumerate(requests):
        yield Document(text=f"{request.query}\n{request.query}", source=f"request {number}")


def _value_texts(generators: Sequence[RequestGenerator], num_requests: int, seed: int) -> Iterator[Document]:
    """How times, durations, levels and dates are said and what they mean, a line each: `half past six pm = 18:30`.

    A dozen tokens with nothing but the lesson, where a request has thirty around it.
    """
    spoken = [(generator, kind) for generator in generators for kind in generator.book.spoken_kinds()]
    if not spoken:
        return
    rng = random.Random(f"{seed}/values")
    for number in range(num_requests // (2 * VALUE_LINES)):
        chosen = rng.choices(spoken, k=VALUE_LINES)
        drawn = [generator.book.draw_lesson(kind, rng) for generator, kind in chosen]
        yield Document(text="\n".join(f"{one.surface} = {one.value}" for one in drawn), source=f"values {number}")
