"""Train and validation never share a text."""

from __future__ import annotations

import pytest

from leveret.data.examples import Document
from leveret.data.split import is_held_out, split_documents
from leveret.errors import DataError


def test_no_text_is_on_both_sides_even_when_it_comes_twice() -> None:
    texts = [f"text number {number % 300}" for number in range(1000)]
    train, held_out = split_documents([Document(text=text, source="x") for text in texts], 0.2)
    assert {document.text for document in train} & {document.text for document in held_out} == set()
    assert len(train) + len(held_out) == 1000
    assert 0.1 < len(held_out) / 1000 < 0.3


def test_copies_that_differ_in_case_width_or_spacing_fall_on_one_side() -> None:
    for number in range(50):
        text = f"Some Text {number}"
        copies = [text.upper(), f" some\ttext \n{number}", f"Ｓome text {number}"]
        assert {is_held_out(copy, 0.5) for copy in copies} == {is_held_out(text, 0.5)}


def test_the_seed_chooses_another_division() -> None:
    texts = [str(number) for number in range(200)]
    assert [is_held_out(text, 0.5, seed=1) for text in texts] != [is_held_out(text, 0.5, seed=2) for text in texts]


def test_an_empty_side_is_an_error() -> None:
    with pytest.raises(DataError, match="too few"):
        split_documents([Document(text="one", source="x")], 0.1)
    with pytest.raises(DataError, match="between 0 and 1"):
        split_documents([], 1.5)
