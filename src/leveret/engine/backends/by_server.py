"""The backend at a URL: a server that speaks the OpenAI API generates; prompts are ours, and so are the ends.

The prompt is rendered and read here, by the model's own template and tokenizer, and sent as ids, so the server sees
what our engine would. What comes back is ids where the server says them (`return_tokens_as_token_ids`, as vLLM does)
and otherwise text, which is read by the same tokenizer: perhaps not the ids that were generated, but the same text.
How many they were is said by the server, if it counts them. Whatever a server cannot be asked is refused here with a
RequestError, never left out: constraints choose among ids one by one, and no server lets anybody do that.

    http://127.0.0.1:8000/v1          the first model that it serves
    http://127.0.0.1:8000/v1#name     the one of this name

A key is taken from the environment variable OPENAI_API_KEY.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from leveret.engine.backends.completions import Completions, Piece
from leveret.engine.backends.queued import QueuedBackend
from leveret.engine.request import FinishReason, Request
from leveret.engine.row import Progress, Row
from leveret.errors import RequestError
from leveret.tokenizer.files import Tokenizer

MOST_CONNECTIONS = 16
"""Requests that are with the server at a time; more wait here."""

WAIT_SECONDS = 0.1
"""How long a step waits for the server; a row that is cancelled meanwhile is noticed after it."""


@dataclass(frozen=True, kw_only=True)
class _News:
    """What a connection has brought: a piece, or why it ended."""

    row: Row
    piece: Piece | None = None
    error: RequestError | None = None


class Reading:
    """What has come of one answer, as ids."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._held = ""
        self._ids: list[int] = []
        self._text = ""
        self.stop_ids = frozenset(stop_ids)

    def read(self, piece: Piece) -> list[int]:
        """The ids of a piece. A text is held back as long as it does not read as what it is after the ids before."""
        if piece.ids is not None:
            return list(piece.ids)
        self._held += piece.text
        ids = self._tokenizer.encode(self._held, allow_special=True)
        fits = self._tokenizer.decode([*self._ids, *ids]) == self._text + self._held
        if not fits and piece.finish_reason is None:
            return []
        self._ids, self._text, self._held = [*self._ids, *ids], self._text + self._held, ""
        return ids


class ServerBackend(QueuedBackend[Reading]):
    """Runs requests on a server."""

    def __init__(self, completions: Completions, tokenizer: Tokenizer, *, context_tokens: int | None = None) -> None:
        """context_tokens: what the model holds, where the server does not say."""
        super().__init__()
        self._completions = completions
        self._tokenizer = tokenizer
        self._context_tokens = completions.context_tokens or context_tokens or 1 << 30
        self._news: queue.Queue[_News] = queue.Queue()

    @property
    def context_tokens(self) -> int:
        """What the server says, or else what the model's config does."""
        return self._context_tokens

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer."""
        return self._tokenizer.vocab_size

    def check(self, request: Request) -> None:
        """As every backend, and RequestError for what no server can be asked."""
        super().check(request)
        if request.constraint is not None:
            self.check_form("constraint")
        if request.params.logprobs is not None:
            raise RequestError(
                "log probabilities are not fetched from a server",
                param="logprobs",
                code="unsupported",
                hint="ask the server itself, or run the model here",
            )

    def check_form(self, param: str) -> None:
        """RequestError: a server lets nobody choose among its tokens."""
        freely = "; in Python and for evaluate, constrained=false lets it write calls freely"
        raise RequestError(
            "a server chooses its tokens itself: an answer from there cannot be kept to a form or to tool calls",
            param=param,
            code="unsupported",
            hint=f"run the model here (backend=leveret){freely if param == 'tools' else ''}",
        )

    def step(self) -> list[Progress]:
        """Take what has come from the server; waits a moment for it while something is under way.

        A request that the server refuses or breaks off ends with an error in its words.
        """
        self._send_waiting()
        progress: list[Progress] = []
        with contextlib.suppress(queue.Empty):
            while self._running:
                taken = self._taken(self._news.get(timeout=0 if progress else WAIT_SECONDS))
                progress += [] if taken is None else [taken]
        self._counts["steps"] += bool(progress)
        return progress

    @property
    def _capacity_tokens(self) -> int:
        return 0

    def _release(self, place: Reading) -> None:
        """Nothing: the connection of a row that has ended is closed at the next piece that it brings."""

    def _send_waiting(self) -> None:
        with self._lock:
            while self._waiting and len(self._running) < MOST_CONNECTIONS:
                row = self._waiting.popleft()
                self._running[row] = Reading(self._tokenizer, row.request.params.stop_ids)
                threading.Thread(target=self._converse, args=(row,), name="leveret-request", daemon=True).start()

    def _converse(self, row: Row) -> None:
        """In a thread of its own: send a request, and hand on what comes."""
        try:
            for piece in self._completions.stream(row.request):
                if row.finish_reason is not None:
                    return
                self._news.put(_News(row=row, piece=piece))
        except RequestError as error:
            self._news.put(_News(row=row, error=error))
        except Exception as error:  # nobody else would hear of it, and the row would wait for ever
            logging.getLogger(__name__).exception("an answer of the server could not be read")
            refusal = RequestError(f"the server's answer could not be read: {error}", code="bad_gateway")
            self._news.put(_News(row=row, error=refusal))

    def _taken(self, news: _News) -> Progress | None:
        row = news.row
        with self._lock:
            if row not in self._running:
                return None  # cancelled meanwhile
            if news.error is not None:
                row.fail(news.error)
                return self._progress(row, [])
            assert news.piece is not None
            reading = self._running[row]
            ids = list[int]()
            with row.alone():
                read = reading.read(news.piece)
                ids = _append(row, read, reading, news.piece.finish_reason)
                if len(ids) + (row.stop_id is not None) == len(read):  # else the server went on behind our end
                    row.num_counted = news.piece.num_generated
            return self._progress(row, ids)


def _append(row: Row, ids: Sequence[int], reading: Reading, reason: FinishReason | None) -> list[int]:
    """Add ids to a row, up to the first at which the answer ends; `reason`: the server has ended it behind them."""
    first, watch = len(row.ids), row.request.watch
    for token_id in ids:
        if token_id in reading.stop_ids:
            row.stop_id, row.finish_reason = token_id, "stop"
            break
        row.ids.append(token_id)
        if watch is not None and watch(token_id):
            row.finish_reason = "stop"
            break
    row.finish_reason = row.finish_reason or reason
    return row.ids[first:]
