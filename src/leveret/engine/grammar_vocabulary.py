"""A tokenizer as the grammar library wants to see it: the bytes of every id, which are special, how a text is written.

Special tokens are told apart, so that no text spells one. One id more than there are stands for the end of an answer,
which the engine handles itself (grammar.py).
"""

from __future__ import annotations

from leveret.tokenizer.files import Tokenizer


class GrammarVocabulary:
    """The attributes that llguidance's TokenizerWrapper reads, and the call by which it asks how a text is written."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        """`size`: ids from here on are left out."""
        special = {index: text for text, index in tokenizer.special_ids.items() if index < size}
        self.tokens = [
            special[index].encode() if index in special else _bytes_of(tokenizer, index) for index in range(size)
        ]
        self.tokens.append(b"<end of the answer>")
        self.special_token_ids = [*sorted(special), size]
        self.eos_token_id = size
        self.bos_token_id = None
        self._tokenizer = tokenizer
        texts = {token: index for index, token in enumerate(self.tokens[:size]) if token and index not in special}
        self._ids = texts  # of equal tokens the last: pieces come after the bytes that no piece covers
        self._longest = max(map(len, texts), default=1)

    def __call__(self, text: str) -> list[int]:
        """How the tokenizer writes a text in the midst of another; always tokens of exactly these bytes."""
        data = text.encode()
        for candidate, dropped in ((text, 0), (text, 1), (text.removeprefix(" "), 0)):
            ids = self._tokenizer.encode(candidate)[dropped:]  # some put a space before every text
            if all(index < self.eos_token_id for index in ids) and b"".join(map(self.tokens.__getitem__, ids)) == data:
                return ids
        return self._longest_tokens(data)

    def _longest_tokens(self, data: bytes) -> list[int]:
        """Always the longest token that fits, where the tokenizer cannot be asked (it may change what it reads)."""
        ids: list[int] = []
        position = 0
        while position < len(data):
            for length in range(min(self._longest, len(data) - position), 0, -1):
                index = self._ids.get(data[position : position + length])
                if index is not None:
                    ids.append(index)
                    position += length
                    break
            else:
                return ids  # no token for this byte: what follows is left to the mask
        return ids


def _bytes_of(tokenizer: Tokenizer, index: int) -> bytes:
    data = tokenizer.bytes_of(index, skip_special=False)
    return b"" if data == "\ufffd".encode() else data
