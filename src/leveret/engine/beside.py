"""Another model in an engine: the same cache, the same steps for its requests, and asked like any backend.

    engine = Engine(base)
    poet = engine.beside(adapted(base, "models/poet-lora"))
    poet.generate([...])                      # beside whatever `engine` is asked at the same time

Where models share their weights, a step reads these once for the rows of all (compiled_step.py). With ten adapters that
one client each uses, ten engines would read them ten times.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from leveret.engine.backend import Backend
from leveret.engine.request import Request
from leveret.engine.row import Progress, Row
from leveret.engine.stats import EngineStats
from leveret.model.decoder import Decoder

if TYPE_CHECKING:
    from leveret.engine.engine import Engine


class Beside(Backend):
    """A model beside the own one of an engine; made by `Engine.beside`. A step goes on with all requests of the engine.

    Once this is closed, or nobody holds it any more, the engine forgets the model when its last request has ended.
    """

    def __init__(self, engine: Engine, model: Decoder, number: int, *, give_up: Callable[[], None]) -> None:
        self._engine, self._model, self._number = engine, model, number
        self._end = weakref.finalize(self, give_up)

    @property
    def runs_in(self) -> Engine:
        """The engine."""
        return self._engine

    @property
    def model(self) -> Decoder:
        """The model that answers."""
        return self._model

    @property
    def context_tokens(self) -> int:
        """Most tokens a prompt and its answer may have together."""
        return self._engine.context_tokens

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows."""
        return self._model.config.vocab_size

    @property
    def stats(self) -> EngineStats:
        """Those of the engine, with the requests of all its models."""
        return self._engine.stats

    def submit(self, request: Request) -> Row:
        """Take a request on; the steps that follow serve it. Raises RequestError when it cannot be served."""
        return self._engine.submit(request, model=self._number)

    def step(self) -> list[Progress]:
        """Go on with all rows of the engine."""
        return self._engine.step()

    def cancel(self, *rows: Row) -> None:
        """End rows now; they report nothing more. Nothing happens to those that have ended."""
        self._engine.cancel(*rows)

    def close(self) -> None:
        """Take no new requests; what is being answered is answered to the end."""
        self._end()


def refusal(own: Decoder, other: Decoder) -> str | None:
    """Why two models cannot read one cache; None when they can."""
    if own.config != other.config:
        return "their configs differ"
    one, two = own.embed_tokens.weight, other.embed_tokens.weight
    if (one.dtype, one.device) != (two.dtype, two.device):
        return f"one is {one.dtype} on {one.device}, the other {two.dtype} on {two.device}"
    return None
