"""Scoring prompts between steps: once a prompt, a piece a round, and one that fails alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from leveret.engine.jobs import Job
from leveret.engine.logprobs import PIECE_TOKENS, score_prompt
from leveret.engine.text import TextModel
from leveret.serve.scoring import Scoring
from leveret.serve.ticket import Ticket


def ticket(*jobs: Job, errors: list[BaseException] | None = None) -> Ticket:
    told = [] if errors is None else errors
    return Ticket([replace(job, prompt_logprobs=1) for job in jobs], lambda index, deltas: None, told.append)


@pytest.fixture
def forwards(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward read."""
    read: list[int] = []
    hidden: Callable[..., Any] = model.model.hidden

    def counted(ids: Any, **keys: Any) -> Any:
        read.append(ids.shape[1])
        return hidden(ids, **keys)

    monkeypatch.setattr(model.model, "hidden", counted)
    return read


def test_the_choices_of_a_prompt_share_its_scores_and_a_round_reads_a_piece(
    model: TextModel, forwards: list[int]
) -> None:
    ids = [5 + place % 90 for place in range(2 * PIECE_TOKENS + 9)]
    asked, scoring = ticket(*[model.prepare_text(ids) for _ in range(5)]), Scoring(model)
    for index in range(4):
        scoring.add(asked, index)
    ready: list[tuple[Ticket, int]] = []
    for round_number in range(4):
        assert not ready and len(scoring.jobs) == 4
        ready = scoring.step()
        assert len(forwards) == min(round_number + 1, 3) and max(forwards) <= PIECE_TOKENS
    assert ready == [(asked, index) for index in range(4)]
    assert asked.prompt_scores[tuple(ids)] == tuple(
        each for piece in score_prompt(model.model, ids, 1) for each in piece
    )
    forwards.clear()
    scoring.add(asked, 4)
    assert scoring.step() == [(asked, 4)] and not forwards


def test_who_leaves_is_read_no_further_and_the_next_begins(model: TextModel, forwards: list[int]) -> None:
    gone, stays, scoring = ticket(model.prepare_text([5] * 700)), ticket(model.prepare_text([6] * 9)), Scoring(model)
    scoring.add(gone, 0)
    scoring.add(stays, 0)
    assert scoring.step() == []
    gone.cancel()
    assert scoring.step() == [] and scoring.step() == [(stays, 0)] and not scoring.jobs
    assert forwards == [PIECE_TOKENS, 8] and len(stays.prompt_scores[(6,) * 9]) == 9


def test_a_prompt_that_cannot_be_scored_fails_alone(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[BaseException] = []
    broken, good = ticket(model.prepare_text([5] * 9), errors=errors), ticket(model.prepare_text([6] * 9))
    scoring = Scoring(model)
    scoring.add(broken, 0)
    scoring.add(good, 0)
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "hidden", lambda *args, **keys: 1 // 0)
        assert scoring.step() == []
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert scoring.step() == [] and scoring.step() == [(good, 0)]
