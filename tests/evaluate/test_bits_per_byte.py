"""Bits per byte count every token once and every byte of the text, whatever the tokenizer does with characters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.errors import WeightsError
from leveret.evaluate.bits_per_byte import bits_per_byte
from leveret.model.decoder import Decoder
from leveret.tokenizer.files import Tokenizer


class Uniform(torch.nn.Module):
    """Knows nothing."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.vocab_size = vocab_size

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, self.vocab_size)


def naive_bits(model: torch.nn.Module, ids: list[int], *, window: int) -> float:
    """One token at a time; a window begins with the last token of the one before."""
    bits = 0.0
    with torch.no_grad():
        for position in range(1, len(ids)):
            start = (position - 1) // (window - 1) * (window - 1)
            logits = model(torch.tensor([ids[start:position]]))[0, -1].double()
            bits -= float(torch.log_softmax(logits, -1)[ids[position]]) / math.log(2)
    return bits


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=30), max_size=4))
def test_a_model_that_knows_nothing_pays_for_every_token(tokenizer: Tokenizer, texts: list[str]) -> None:
    size = tokenizer.vocab_size
    score = bits_per_byte(Uniform(size), tokenizer, texts, vocab_size=size, window_tokens=8)
    ids = [tokenizer.encode(text) for text in texts]
    assert (
        score.num_bytes
        == len("".join(texts).encode())
        == sum(len(tokenizer.token_bytes(i)) for row in ids for i in row)
    )
    assert score.num_tokens == sum(map(len, ids)) and score.num_documents == sum(map(bool, texts))
    assert score.bits == pytest.approx(score.num_tokens * math.log2(size), rel=1e-6)


@pytest.mark.parametrize("window", [5, 16, 200])
def test_batched_windows_cost_what_one_token_at_a_time_costs(
    decoder: Decoder, tokenizer: Tokenizer, window: int
) -> None:
    texts = ["Call Alice, please.", "明天早上七点半叫我起床 🐢🐇", "x", "Set a timer for five minutes " * 2]
    score = bits_per_byte(decoder, tokenizer, texts, vocab_size=tokenizer.vocab_size, window_tokens=window)
    assert tokenizer.bos_id is not None and score.context_token == "bos"
    expected = sum(naive_bits(decoder, [tokenizer.bos_id, *tokenizer.encode(text)], window=window) for text in texts)
    assert score.bits == pytest.approx(expected, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(expected / len("".join(texts).encode()), rel=1e-5)


def test_without_bos_the_first_token_is_charged_as_if_nothing_were_known(
    decoder: Decoder, tokenizer: Tokenizer
) -> None:
    bare = Tokenizer(tokenizer.to_json(), eos_token="</s>")
    score = bits_per_byte(decoder, bare, ["Call Alice", "Set"], vocab_size=400, window_tokens=64)
    expected = sum(math.log2(400) + naive_bits(decoder, bare.encode(text), window=64) for text in ("Call Alice", "Set"))
    assert score.context_token == "nothing"
    assert score.bits == pytest.approx(expected, rel=1e-5)


def test_a_model_that_computes_no_numbers_has_no_score(tokenizer: Tokenizer) -> None:
    model = Uniform(tokenizer.vocab_size)
    model.forward = lambda ids: torch.full((*ids.shape, tokenizer.vocab_size), float("nan"))  # type: ignore[method-assign]
    with pytest.raises(WeightsError, match="no numbers"):
        bits_per_byte(model, tokenizer, ["a hare runs"], vocab_size=tokenizer.vocab_size, window_tokens=8)
