"""The call that an answer is writing, as far as it was given out in pieces."""

from __future__ import annotations

from collections.abc import Iterable

from leveret.chat.messages import CallPiece
from leveret.engine.reply import Delta


class OpenCalls:
    """Adds up the pieces of calls that are not whole yet; one step may end a call and begin the next."""

    def __init__(self) -> None:
        self._open: dict[int, CallPiece] = {}

    def note(self, deltas: Iterable[Delta]) -> None:
        """What is given out."""
        for delta in deltas:
            piece = delta.call_piece
            if piece is not None:
                before = self._open.get(piece.index)
                name, arguments = (piece.name, "") if before is None else (before.name, before.arguments)
                self._open[piece.index] = CallPiece(piece.index, name, arguments + piece.arguments)
            if delta.tool_call is not None and self._open:
                del self._open[min(self._open)]

    def clear(self) -> None:
        """What was open turned out to be no call."""
        self._open.clear()

    @property
    def last(self) -> CallPiece | None:
        """All that was given out of the open call."""
        return self._open[max(self._open)] if self._open else None
