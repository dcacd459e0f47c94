"""Calls in functional tokens, read out of generated ids one id at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from leveret.engine.reply import Delta
from leveret.tokenizer.files import Tokenizer
from leveret.tools.functional import FunctionalDialect
from leveret.tools.functional_stream import FunctionalStream


@dataclass(kw_only=True)
class FunctionalReader:
    """Reads calls in functional tokens out of generated ids, one id at a time."""

    tokenizer: Tokenizer
    dialect: FunctionalDialect
    num_calls: int = 0
    """Whole calls of the answer so far; the caller adds those that are written otherwise."""
    _ids: list[int] = field(default_factory=list)
    _open: FunctionalStream | None = None

    @cached_property
    def end_id(self) -> int:
        """What ends a call."""
        return self.tokenizer.id_of(self.dialect.end_token)

    @cached_property
    def tool_ids(self) -> dict[int, int]:
        """The number of each tool by its token."""
        return {self.tokenizer.id_of(token): number for number, token in enumerate(self.dialect.tool_tokens)}

    @property
    def inside(self) -> bool:
        """True from a tool token to the end token of its call."""
        return self._open is not None

    @property
    def raw(self) -> str:
        """The open call as text."""
        return self.tokenizer.decode(self._ids)

    def push(self, token_id: int) -> list[Delta]:
        """Take a tool token, or an id of the open call. ToolError when a whole call is none."""
        if self._open is None:
            tool = self.dialect.tools[self.tool_ids[token_id]]
            self._ids, self._open = [], FunctionalStream(tool, self.num_calls)
        self._ids.append(token_id)
        pieces = self._open.push(self.tokenizer.decode(self._ids[1:])) if token_id != self.end_id else []
        deltas = [Delta(call_piece=piece) for piece in pieces]
        if token_id == self.end_id:
            (call,) = self.dialect.parse(self.tokenizer.decode(self._ids))
            self._open = None
            self.num_calls += 1
            deltas.append(Delta(tool_call=call))
        return deltas
