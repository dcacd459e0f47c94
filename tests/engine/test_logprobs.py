"""Log probabilities against a plain log softmax of the model's logits."""

from __future__ import annotations

import pytest
import torch

from leveret.engine.engine import Engine
from leveret.engine.logprobs import PIECE_TOKENS, POSITIONS_AT_ONCE, score_prompt
from leveret.engine.request import Request, SamplingParams
from leveret.engine.token_score import TokenScore
from leveret.model.decoder import Decoder

from .conftest import random_decoder, tiny_config


def test_a_prompt_is_scored_token_by_token_over_many_positions(decoder: Decoder) -> None:
    ids = [(7 * place) % decoder.config.vocab_size for place in range(POSITIONS_AT_ONCE + 9)]
    expected = decoder(torch.tensor([ids]))[0].float().log_softmax(-1)
    (scores,) = score_prompt(decoder, ids, 2)
    assert [score.id for score in scores] == ids
    assert scores[0] == TokenScore(id=ids[0], logprob=None)
    for place, score in enumerate(scores[1:]):
        assert score.logprob == pytest.approx(expected[place, score.id].item(), abs=1e-4)
        assert [token_id for token_id, _ in score.top] == expected[place].topk(2).indices.tolist()


def test_an_answers_scores_are_what_scoring_it_afterwards_gives(decoder: Decoder) -> None:
    prompt, records = (1, 2, 3), []
    request = Request(prompt_ids=prompt, params=SamplingParams(max_tokens=9, logprobs=2), record=records.append)
    other = Request(prompt_ids=(4, 5), params=SamplingParams(max_tokens=5))
    answer = Engine(decoder).generate([request, other])[0]
    (scores,) = score_prompt(decoder, [*prompt, *answer.ids], 2)
    afterwards = scores[len(prompt) :]
    assert [score.id for score in records] == list(answer.ids)
    for now, later in zip(records, afterwards, strict=True):
        assert now.logprob == pytest.approx(later.logprob, abs=1e-4)
        assert now.top[0][0] == now.id  # greedy takes the likeliest


@pytest.mark.parametrize("length", [1, 2, PIECE_TOKENS, PIECE_TOKENS + 1, PIECE_TOKENS + 2, 2 * PIECE_TOKENS + 9])
def test_a_long_prompt_is_scored_in_pieces_that_add_up_to_one_forward(length: int) -> None:
    model = random_decoder(tiny_config(97, max_position_embeddings=1024, sliding_window=300))
    ids = [(7 * place) % 97 for place in range(length)]
    pieces = list(score_prompt(model, ids, 1))
    assert all(len(piece) <= PIECE_TOKENS + 1 for piece in pieces)
    scores = [score for piece in pieces for score in piece]
    assert [score.id for score in scores] == ids and scores[0].logprob is None
    expected = model(torch.tensor([ids]))[0].float().log_softmax(-1)
    for place, score in enumerate(scores[1:]):
        assert score.logprob == pytest.approx(expected[place, score.id].item(), abs=1e-4)
