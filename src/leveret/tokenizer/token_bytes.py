"""The exact bytes behind every token id.

A token is a piece of a byte string, not of a text: the first byte of 中 may end one token and its last two begin the
next, so "the text of a token" does not exist and measuring it (for bits per byte, say) counts U+FFFD instead of the
truth. The bytes always exist. Tokenizers write them down in one of two ways:

* byte-level (GPT-2, Llama 3, Aquila, ours): each byte 0-255 is written as one visible character, so that a vocabulary
  file is readable. The 188 printable Latin-1 bytes stand for themselves, the other 68 are U+0100, U+0101, ... in order;
  a space is therefore Ġ (U+0120).
* sentencepiece (Llama 1/2, Mistral): pieces are plain text with ▁ (U+2581) for a space, plus 256 pieces `<0x00>` to
  `<0xFF>` for bytes that no piece covers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from leveret.errors import TokenizerError

Notation = Literal["byte-level", "sentencepiece"]

REPLACEMENT = "\ufffd".encode()
"""What stands in a decoded text for an id that has no token."""

SPACE_MARK = "\u2581"
"""How sentencepiece writes a space."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """The byte-level notation: visible character -> byte, all 256 of them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


def notation_of(tokenizer_json: Mapping[str, Any]) -> Notation:
    """Which of the two notations a parsed `tokenizer.json` uses; TokenizerError if neither."""
    kinds = set(_component_types(tokenizer_json.get("decoder"))) | set(
        _component_types(tokenizer_json.get("pre_tokenizer"))
    )
    if "ByteLevel" in kinds:
        return "byte-level"
    if kinds & {"Metaspace", "ByteFallback"}:
        return "sentencepiece"
    raise TokenizerError(
        f"this tokenizer is neither byte-level nor sentencepiece (its decoder is {sorted(kinds) or 'missing'}), "
        "so the bytes of its tokens are unknown",
        hint="use a tokenizer of a GPT-2, Llama, Mistral, Qwen or Aquila kind, or train one with `leveret tokenizer`",
    )


def strips_first_space(tokenizer_json: Mapping[str, Any]) -> bool:
    """Whether decoding drops the space that a sentencepiece tokenizer puts before every text."""
    for component in _components(tokenizer_json.get("decoder")):
        if component.get("type") == "Strip" and component.get("start", 0) >= 1:
            return True
        if component.get("type") == "Metaspace" and component.get("prepend_scheme", "always") != "never":
            return True
    return False


def put_first_space(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """The parts of a pre-tokenizer that put a space before the first word of a text, and before no other."""
    return [
        component
        for component in _components(pre_tokenizer)
        if component.get("type") == "Metaspace" and component.get("prepend_scheme") == "first"
    ]


def token_byte_table(
    pieces: Mapping[str, int], added: Mapping[int, str], notation: Notation, size: int
) -> list[bytes | None]:
    """The bytes of ids 0 .. size-1 (None where the vocabulary has a hole).

    `pieces` maps a vocabulary piece to its id; `added` holds the added tokens (special ones and others), whose bytes
    are simply their text in UTF-8.
    """
    table: list[bytes | None] = [None] * size
    alphabet = byte_alphabet()
    for piece, index in pieces.items():
        table[index] = _piece_bytes(piece, notation, alphabet)
    for index, text in added.items():
        table[index] = text.encode()
    return table


def _piece_bytes(piece: str, notation: Notation, alphabet: Mapping[str, int]) -> bytes:
    if notation == "byte-level":
        if all(character in alphabet for character in piece):
            return bytes(alphabet[character] for character in piece)
        return piece.encode()
    if match := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(match.group(1), 16)])
    return piece.replace(SPACE_MARK, " ").encode()


def _components(component: Any) -> Iterable[dict[str, Any]]:
    """A decoder or pre-tokenizer and everything inside it when it is a Sequence."""
    if not isinstance(component, dict):
        return
    yield component
    for key in ("decoders", "pretokenizers"):
        for inner in component.get(key, ()):
            yield from _components(inner)


def _component_types(component: Any) -> Iterable[str]:
    return (str(inner.get("type")) for inner in _components(component))
