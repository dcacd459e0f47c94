"""With a cache or without, in chunks of any size, alone or among neighbours: the same logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.model.cache import KVCache
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights

Tiny = Callable[..., Decoder]
Ids = Callable[..., torch.Tensor]

KINDS: dict[str, dict[str, Any]] = {
    "full attention": {},
    "window": {"sliding_window": 6},
    "experts": {"moe": MoeConfig(num_experts=4)},
    "every head its own": {"num_key_value_heads": 4},
}


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest.mark.parametrize("chunk", [1, 3, 5, 7, 20])
@torch.no_grad()
def test_chunks_of_any_size_equal_the_full_forward_at_every_step(chunk: int, kind, tiny: Tiny, ids: Ids) -> None:
    model, text = tiny(**kind), ids(2, 20)
    cache = KVCache(model.config, 2, 20)
    for start in range(0, 20, chunk):
        piece = text[:, start : start + chunk]
        read = start + piece.shape[1]
        close(model(piece, cache=cache), model(text[:, :read])[:, start:])
        assert cache.lengths.tolist() == [read, read]


@given(cuts=st.sets(st.integers(1, 23), max_size=8), window=st.sampled_from([None, 1, 4, 9]))
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_any_cut_into_chunks_gives_the_same(cuts: set[int], window: int | None) -> None:
    config = ModelConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=window, initializer_range=0.3,
    )  # fmt: skip
    model = Decoder(config).eval()
    init_weights(model, seed=0)
    text = torch.randint(50, (1, 24), generator=torch.Generator().manual_seed(1))
    cache = KVCache(config, 1, 24)
    borders = [0, *sorted(cuts), 24]
    pieces = [model(text[:, a:b], cache=cache) for a, b in itertools.pairwise(borders)]
    close(torch.cat(pieces, dim=1), model(text))


@torch.no_grad()
def test_a_right_padded_batch_of_mixed_lengths_equals_each_row_alone(kind, tiny: Tiny, ids: Ids) -> None:
    model, text = tiny(**kind), ids(3, 30)
    prompts = [4, 11, 7]
    padded = torch.zeros(3, 11, dtype=torch.long)
    for row, length in enumerate(prompts):
        padded[row, :length] = text[row, :length]
    cache = KVCache(model.config, 3, 30)
    last = torch.tensor(prompts) - 1
    logits = model(padded, cache=cache, logits_at=last)
    cache.lengths = torch.tensor(prompts)
    for step in range(12):
        for row, length in enumerate(prompts):
            alone = model(text[row : row + 1, : length + step])[0, -1]
            close(logits[row, 0], alone)
        fed = torch.stack([text[row, length + step] for row, length in enumerate(prompts)]).unsqueeze(1)
        logits = model(fed, cache=cache)


@torch.no_grad()
def test_mixed_rows_can_be_prefilled_in_chunks(kind, tiny: Tiny, ids: Ids) -> None:
    model, text = tiny(**kind), ids(2, 16)
    cache = KVCache(model.config, 2, 24)
    model(text[:, :5], cache=cache)
    cache.lengths = torch.tensor([2, 5])  # row 0 had three columns of padding
    second = torch.stack([text[0, 2:10], text[1, 5:13]])
    got = model(second, cache=cache)
    close(got[0], model(text[:1, :10])[0, 2:])
    close(got[1], model(text[1:, :13])[0, 5:])


@torch.no_grad()
def test_truncating_and_selecting_rows_continue_as_if_nothing_else_had_been(tiny: Tiny, ids: Ids) -> None:
    model, text = tiny(), ids(3, 12)
    cache = KVCache(model.config, 3, 16)
    model(text, cache=cache)
    cache.truncate(torch.tensor([12, 8, 99]))
    assert cache.lengths.tolist() == [12, 8, 12]
    cache.select_rows([1, 1, 0])
    new = ids(3, 1, seed=5)
    got = model(new, cache=cache)
    for row, (source, length) in enumerate([(1, 8), (1, 8), (0, 12)]):
        whole = torch.cat([text[source : source + 1, :length], new[row : row + 1]], dim=1)
        close(got[row, 0], model(whole)[0, -1])


@torch.no_grad()
def test_one_position_of_each_row_equals_that_column_of_all(tiny: Tiny, ids: Ids) -> None:
    model, text = tiny(), ids(2, 9)
    everything = model(text)
    close(model(text, last_only=True), everything[:, -1:])
    close(model(text, logits_at=torch.tensor([3, 8])), torch.stack([everything[0, 3:4], everything[1, 8:9]]))


def test_a_cache_that_is_too_small_says_so(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    with pytest.raises(AssertionError, match="9 tokens do not fit a cache of 8"):
        model(ids(1, 9), cache=KVCache(model.config, 1, 8))


def test_no_gradient_flows_into_a_cache(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    cache = KVCache(model.config, 1, 8)
    model(ids(1, 4), cache=cache)
    assert not any(tensor.requires_grad for tensor in cache.keys + cache.values)


@torch.no_grad()
def test_bfloat16_decoding_stays_near_the_full_forward(tiny: Tiny, ids: Ids) -> None:
    model = tiny().to(torch.bfloat16)
    text = ids(1, 16)
    cache = KVCache(model.config, 1, 16, dtype=torch.bfloat16)
    steps = torch.cat([model(text[:, at : at + 1], cache=cache) for at in range(16)], dim=1)
    full = model(text)
    assert steps.dtype == torch.bfloat16
    assert (steps - full).float().norm() / full.float().norm() < 0.02
