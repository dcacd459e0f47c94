"""Which tokens go through the compiled step, and that logits come back in order whatever went which way."""

from __future__ import annotations

import pytest
import torch

from leveret.engine.runner import MOST_COMPILED_TOKENS, Runner
from leveret.kernels.native.library import missing
from leveret.model.decoder import Decoder
from leveret.model.paged_cache import Feed

from .conftest import random_decoder, tiny_config


def feeds_of(*lengths: int) -> list[Feed]:
    """Sequences of so many new tokens, each in blocks of its own."""
    return [
        Feed(
            ids=[(7 * row + place) % 97 for place in range(length)],
            start=0,
            table=[3 * row + 1, 3 * row + 2, 3 * row + 3],
            planned_length=48,
        )
        for row, length in enumerate(lengths)
    ]


@torch.inference_mode()
def test_logits_come_in_the_order_of_the_feeds_and_only_where_they_are_wanted(decoder: Decoder) -> None:
    runner = Runner({0: decoder}, num_blocks=20, block_tokens=16)
    lengths, wanted = (30, 1, 17, 2, 1), (1, 1, 0, 2, 1)
    logits = runner(feeds_of(*lengths), wanted)
    alone = [
        decoder(torch.tensor([feed.ids]))[0, len(feed.ids) - count :]
        for feed, count in zip(feeds_of(*lengths), wanted, strict=True)
    ]
    torch.testing.assert_close(logits, torch.cat(alone))


@pytest.mark.skipif(missing() is not None, reason=f"no compiled kernels: {missing()}")
def test_answers_and_a_few_ends_of_prompts_take_the_compiled_step() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    model = random_decoder(tiny_config(97, **sizes)).to(torch.bfloat16)
    runner = Runner({0: model}, num_blocks=60, block_tokens=16)
    assert runner.step_of(0) is not None
    assert runner._few(feeds_of(1, 5, MOST_COMPILED_TOKENS, 40), (1, 5, 1, 1)) == [0, 1, 2]
    assert runner._few(feeds_of(*[10] * 8, 1), (*[1] * 8, 1)) == [8]
