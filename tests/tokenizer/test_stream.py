"""Streaming: the pieces joined are the whole, and no piece holds half a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.stream import StreamDecoder
from leveret.tokenizer.train import train_byte_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_byte_bpe(["你好 hello 👩‍👩‍👧"] * 5, vocab_size=270, special_tokens=["<end>"])


def stream(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = True) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special=skip_special)
    return [*(decoder.push(index) for index in ids), decoder.finish()]


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_pieces_joined_equal_the_text_and_no_character_is_split(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, 275), max_size=15), st.booleans())
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_ids_joined_equal_decode(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(stream(tokenizer, ids, skip_special=skip)) == tokenizer.decode(ids, skip_special=skip)


def test_broken_bytes_are_shown_as_soon_as_they_are_certain(tokenizer: Tokenizer) -> None:
    bytes_to_id = {tokenizer.token_bytes(index): index for index in range(256)}
    decoder = StreamDecoder(tokenizer)
    assert decoder.push(bytes_to_id[b"\xe4"]) == ""  # may become 你
    assert decoder.push(bytes_to_id[b"\xbd"]) == ""
    assert decoder.push(bytes_to_id[b"\xa0"]) == "你"
    assert decoder.push(bytes_to_id[b"\xe4"]) == ""
    assert decoder.push(bytes_to_id[b"a"]) == "\ufffda"  # cannot become anything any more
    assert decoder.push(bytes_to_id[b"\xff"]) == "\ufffd"
    assert decoder.push(bytes_to_id[b"\xe4"]) == ""
    assert decoder.finish() == "\ufffd"


def test_a_special_token_is_skipped_or_shown(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("hello"), tokenizer.id_of("<end>")]
    assert "".join(stream(tokenizer, ids)) == "hello"
    assert "".join(stream(tokenizer, ids, skip_special=False)) == "hello<end>"
