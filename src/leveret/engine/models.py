"""The models of an engine: its own, number 0, and others beside it that read the same cache (`Engine.beside`).

A model keeps its number as long as it is served; a number is never given twice, so what was computed under one is not
taken for another's. A model that is given up stays until the last request for it has ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from leveret.engine.row import Row
from leveret.model.decoder import Decoder


class EngineModels:
    """Models by their numbers, and what they were like when they were last looked at."""

    def __init__(self, own: Decoder) -> None:
        self.by_number: dict[int, Decoder] = {0: own}
        """Replaced, never changed: whoever has it sees when there is another."""
        self._next = 1
        self._given_up: set[int] = set()
        self._seen: dict[int, tuple[object, ...]] = {}

    def add(self, model: Decoder) -> int:
        """Serve one more; its number."""
        number, self._next = self._next, self._next + 1
        self.by_number = {**self.by_number, number: model}
        return number

    def give_up(self, number: int) -> None:
        """There will be no more requests for a model. Safe at any moment in any thread; `let_go` does the rest."""
        self._given_up.add(number)

    def serves(self, number: int) -> bool:
        """Whether requests for a model may come."""
        return number in self.by_number and number not in self._given_up

    def let_go(self, rows: Iterable[Row]) -> None:
        """Forget the models that were given up and that none of the rows needs."""
        if gone := self._given_up - {row.model for row in rows} if self._given_up else set():
            self._given_up -= gone
            self.by_number = {number: model for number, model in self.by_number.items() if number not in gone}

    def changed(self) -> bool:
        """Whether one that was looked at is no longer as it was."""
        seen = self._seen
        return any(number in seen and fingerprint(model) != seen[number] for number, model in self.by_number.items())

    def look(self, *, again: bool) -> None:
        """Remember what they are like; again: those too that were looked at before."""
        known = {} if again else self._seen
        self._seen = {number: known.get(number) or fingerprint(model) for number, model in self.by_number.items()}


def fingerprint(model: Decoder) -> tuple[object, ...]:
    """What changes when a model does: its modules, hooks, mode and weights. Cheap; it does not read the weights.

    An optimizer's step and every other operation in place on a parameter count; what is written through `.data` or from
    outside PyTorch does not.
    """
    modules = tuple((id(each), len(each._forward_hooks) + len(each._forward_pre_hooks)) for each in model.modules())
    tensors = tuple((each.data_ptr(), _version(each), each.dtype) for each in (*model.parameters(), *model.buffers()))
    return model.training, modules, tensors


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
