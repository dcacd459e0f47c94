"""Streaming: the pieces joined are the whole, and no piece holds half a character."""

from __future__ import annotations

import codecs
from itertools import accumulate, pairwise

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


def character_starts(data: bytes) -> list[int]:
    """Where each character of the text begins, in bytes; what is broken is one as Python replaces it."""
    broken: dict[int, int] = {}

    def note(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        broken[error.start] = error.end
        return "\ufffd", error.end

    codecs.register_error("leveret-note", note)
    data.decode(errors="leveret-note")
    starts = [0]
    while starts[-1] < len(data):
        at = starts[-1]
        size = 1 + sum(data[at] >= first for first in (0xC0, 0xE0, 0xF0))
        starts.append(broken.get(at, at + size))
    return starts


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_token_begins_behind_the_half_character_that_it_breaks_off(tokenizer: Tokenizer, data: st.DataObject) -> None:
    likely = tokenizer.encode("aé你🐢\ufffd👩") + [index for index in range(tokenizer.vocab_size) if index % 9 == 0]
    ids = data.draw(st.lists(st.sampled_from([index for index in likely if not tokenizer.is_special(index)])))
    decoder, read, starts = StreamDecoder(tokenizer), 0, []
    for token_id in ids:
        text = decoder.push(token_id)
        starts.append(read + decoder.num_before)
        read += len(text)
    tokens = [tokenizer.token_bytes(token_id) for token_id in ids]
    spans = [*pairwise(character_starts(b"".join(tokens)))]
    places = [0, *accumulate(map(len, tokens))][:-1]
    assert starts == [next(n for n, (a, b) in enumerate(spans) if a <= at < b) for at in places]


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
