"""The first form is asked once for each thing, and answers as if it were asked each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from leveret.certify.by_leveret import LeveretForm, from_directory
from leveret.certify.remembered import Remembered
from leveret.certify.zoo import Fixture


class Counted:
    """A form that counts what it is asked."""

    def __init__(self, form: LeveretForm) -> None:
        self.form, self.asked = form, list[tuple[str, int]]()

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        self.asked.append(("logits", len(ids)))
        return self.form.logits(ids)

    def continue_greedily(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[int, ...]]:
        self.asked.append(("continue", len(prompts)))
        return self.form.continue_greedily(prompts, max_tokens)


def test_answers_are_given_again_and_only_new_questions_are_asked(make_form: Callable[..., Path]) -> None:
    form = from_directory("a", make_form("a"))
    counted = Counted(form)
    kept = Remembered(counted)  # type: ignore[arg-type]
    for _ in range(2):
        assert torch.equal(kept.logits([1, 2, 3]), form.logits([1, 2, 3]))
        assert kept.continue_greedily([[1, 2], [3]], 4) == form.continue_greedily([[1, 2], [3]], 4)
    assert kept.continue_greedily([[3], [4, 5]], 4)[0] == form.continue_greedily([[3]], 4)[0]
    assert counted.asked == [("logits", 3), ("continue", 2), ("continue", 1)]


def test_what_is_too_large_to_keep_is_computed_again(
    make_form: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(from_directory("a", make_form("a")))
    monkeypatch.setattr("leveret.certify.remembered.MOST_BYTES", 10_000)
    kept = Remembered(counted)  # type: ignore[arg-type]
    for _ in range(2):
        kept.logits([1, 2])
        kept.logits([1, 2, 3, 4, 5, 6])
    assert [length for _, length in counted.asked] == [2, 6, 6]


def test_the_rest_is_the_form_s_own(make_form: Callable[..., Path]) -> None:
    form = from_directory("a", make_form("a"))
    kept = Remembered(form)
    for name in ("name", "reader", "path", "numerics", "model", "own_tokenizer", "context_tokens", "stops"):
        assert getattr(kept, name) is getattr(form, name) or getattr(kept, name) == getattr(form, name)
    fixture = Fixture(name="x", text="The hare")
    assert kept.encode(fixture) == form.encode(fixture)
