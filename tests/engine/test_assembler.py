"""Text appears piece by piece, whole characters only, and a stop string is never seen, however tokens divide it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leveret.engine.assembler import TextAssembler
from leveret.tokenizer.files import Tokenizer


def pieces(tokenizer: Tokenizer, text: str, stops: tuple[str, ...], *, one_byte: bool = False) -> list[str]:
    """What the assembler gives out for a text, id by id; `one_byte` encodes each byte as its own token."""
    ids = tokenizer.encode(text)
    if one_byte:
        by_byte = {tokenizer.token_bytes(index): index for index in range(tokenizer.vocab_size)}
        ids = [by_byte[bytes([byte])] for byte in text.encode()]
    assembler = TextAssembler(tokenizer, stops)
    out = []
    for index in ids:
        out.append(assembler.push(index))
        if assembler.stopped:
            return out
    return [*out, assembler.finish()]


def cut(text: str, stops: tuple[str, ...]) -> str:
    """The text before the stop that is complete first, found the slow way."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
    return text


@given(text=st.text("ab#好🐢 ", max_size=30), stops=st.lists(st.text("ab#好", min_size=1, max_size=4), max_size=3))
def test_pieces_add_up_to_the_text_before_the_first_complete_stop(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    expected = cut(text, tuple(stops))
    for one_byte in (False, True):
        out = pieces(tokenizer, text, tuple(stops), one_byte=one_byte)
        assert "".join(out) == expected
        assert all("\ufffd" not in piece for piece in out)


def test_a_stop_that_is_split_over_tokens_is_never_given_out(tokenizer: Tokenizer) -> None:
    out = pieces(tokenizer, "one ### two", ("###",), one_byte=True)
    assert "".join(out) == "one " and not any("#" in piece for piece in out)


def test_what_only_looked_like_a_stop_is_given_out_as_soon_as_that_is_clear(tokenizer: Tokenizer) -> None:
    out = pieces(tokenizer, "a##b", ("###",), one_byte=True)
    assert out == ["a", "", "", "##b", ""]
    assert pieces(tokenizer, "a##", ("###",), one_byte=True) == ["a", "", "", "##"]


def test_text_is_not_held_back_longer_than_a_stop_could_be(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "abcabc", ("xyz",), one_byte=True) == [*"abcabc", ""]


def test_a_prefix_is_left_out_only_at_the_beginning(tokenizer: Tokenizer) -> None:
    for text, expected in [(" hi there", "hi there"), ("hi there", "hi there"), (" ", ""), ("", "")]:
        assembler = TextAssembler(tokenizer, (), prefix=" ")
        out = [assembler.push(index) for index in tokenizer.encode(text)]
        assert "".join(out) + assembler.finish() == expected


def test_special_tokens_are_left_out(tokenizer: Tokenizer) -> None:
    assembler = TextAssembler(tokenizer)
    ids = [*tokenizer.encode("a"), tokenizer.special_ids["<round_end>"], *tokenizer.encode("b")]
    assert "".join(map(assembler.push, ids)) == "ab"
