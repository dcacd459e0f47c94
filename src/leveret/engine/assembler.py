"""TextAssembler: generated ids in, text out as soon as it is certain, stop strings found and cut.

Two things keep text back. A character whose bytes are not all there stays in the `StreamDecoder`. And the end of the
text that could still become a stop string stays here: with the stop "###", after "A ##" only "A " is given out, since
the next token may complete the stop, which must never be seen. A stop may begin in one token and end in another.

Only the held text is searched, so the work is linear in the length of the answer. The concatenation of all pieces is
the whole decoded text cut before the stop that is complete first; how tokens divide the text makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.stream import StreamDecoder


class TextAssembler:
    """Turns the ids of one answer into text; its `push` is a `Request.watch` when wrapped by the caller."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, prefix: str = "", skip_special: bool = True
    ) -> None:
        """
        Args:
            stops: strings that end the answer; none of them empty.
            prefix: left out where the text begins with it (the space that some templates write after "Assistant:").
            skip_special: leave special tokens out.
        """
        self._decoder = StreamDecoder(tokenizer, skip_special=skip_special)
        self._stops = tuple(stops)
        self._prefix = prefix
        self._held = ""
        self.stopped = False
        """True once a stop string has been found; nothing more is given out."""
        self.num_given = 0
        """Characters given out so far."""

    @property
    def num_read(self) -> int:
        """Characters given out or held back: the place in the text where the next token begins.

        If it breaks off a character that is not all there, it begins `num_before` (StreamDecoder) further on.
        """
        return self.num_given + len(self._held)

    @property
    def num_before(self) -> int:
        """Characters that the last token added to the text before its own."""
        return self._decoder.num_before

    def push(self, token_id: int) -> str:
        """Take one id; returns the text that has become certain, often one token's, sometimes none."""
        return self._release(self._decoder.push(token_id), final=False)

    def push_text(self, text: str) -> str:
        """Take text that another decoder made."""
        return self._release(text, final=False)

    def finish(self) -> str:
        """The text still held back, when the answer ended without a stop string."""
        return self._release(self._decoder.finish(), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += text
        if self._prefix:
            if self._prefix.startswith(self._held) and self._held != self._prefix and not final:
                return ""
            self._held, self._prefix = self._held.removeprefix(self._prefix), ""
        found = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)[1]], ""
            self.num_given += len(certain)
            return certain
        keep = 0 if final else self._possible_stop()
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.num_given += len(certain)
        return certain

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that begins some stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
