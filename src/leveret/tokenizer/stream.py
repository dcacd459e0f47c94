"""Token ids to text while they arrive, never splitting a character.

One Chinese character is three bytes and may arrive as three tokens; printing each as it comes shows U+FFFD twice. The
decoder here holds back the bytes of an unfinished character and nothing else, so text appears at the earliest moment
at which it is certain, and the pieces joined equal `Tokenizer.decode` of all ids. Bytes that cannot become a character
any more are U+FFFD at once; bytes that still could are U+FFFD only when `finish` says that nothing follows.
"""

from __future__ import annotations

import codecs

from leveret.tokenizer.files import Tokenizer


class StreamDecoder:
    """Feed ids to `push`, print what it returns, and print what `finish` returns at the end."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = True
        self.num_before = 0
        """Of the text last given, the characters that stand before its token: the U+FFFD of one that it broke off."""

    def push(self, index: int) -> str:
        """The text that became certain with this id (often empty, sometimes several characters)."""
        data = self._tokenizer.bytes_of(index, skip_special=self._skip_special)
        if self._at_start and data:
            self._at_start = False
            if self._tokenizer.strips_first_space and data.startswith(b" "):
                data = data[1:]
        self.num_before = 0
        if not (data and self._decoder.getstate()[0]):
            return self._decoder.decode(data)
        text = self._decoder.decode(data[:1])
        broke_off = len(text) > 1 or bool(text and self._decoder.getstate()[0])
        self.num_before = int(broke_off)
        return text + self._decoder.decode(data[1:])

    def finish(self) -> str:
        """What is left when no id follows: U+FFFD for an unfinished character, usually nothing."""
        return self._decoder.decode(b"", final=True)
