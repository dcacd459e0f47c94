"""Sequences whose keys and values lie in blocks, fed in any pieces together, give the logits of each one whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.paged_cache import MOST_TOGETHER_TOKENS, Feed, PagedCache, PagedRows

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
BLOCK = 4


def model_of(**fields: object) -> Decoder:
    torch.manual_seed(5)
    model = Decoder(ModelConfig(**(SIZES | fields))).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3)
    return model


MODELS = {
    "plain": model_of(),
    "window": model_of(sliding_window=6),
    "experts": model_of(moe=MoeConfig(num_experts=4, experts_per_token=2)),
}


def tables_of(lengths: list[int], *, shuffle: int) -> tuple[list[list[int]], int]:
    """Blocks for sequences of these lengths, in any order, and how many there are."""
    counts = [-(-length // BLOCK) for length in lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(shuffle)) + 1
    return [part.tolist() for part in order.split(counts)], sum(counts)


@torch.inference_mode()
def logits_in_pieces(model: Decoder, texts: list[list[int]], cuts: list[list[int]], *, shuffle: int) -> list[Tensor]:
    """Feed each text in pieces of the lengths in `cuts`, pieces of all texts together; memory is rubbish at first."""
    tables, num_blocks = tables_of(list(map(len, texts)), shuffle=shuffle)
    cache = PagedCache(model.config, num_blocks, BLOCK)
    for each in (*cache.keys, *cache.values):
        each[1:] = float("nan")
    cache.clear(range(1, num_blocks + 1))
    found: list[list[Tensor]] = [[] for _ in texts]
    starts = [0] * len(texts)
    for step in range(max(map(len, cuts))):
        going = [row for row in range(len(texts)) if step < len(cuts[row])]
        feeds = [
            Feed(
                ids=texts[row][starts[row] : starts[row] + cuts[row][step]],
                start=starts[row],
                table=tables[row],
                planned_length=len(texts[row]),
            )
            for row in going
        ]
        rows = PagedRows(cache, feeds)
        parts = torch.split(model(rows.ids, cache=rows)[0], rows.counts)
        for row, part in zip(going, parts, strict=True):
            found[row].append(part)
            starts[row] += len(part)
    return [torch.cat(parts) for parts in found]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_pieces_of_any_length_together_are_each_text_alone(name: str, data: st.DataObject) -> None:
    cuts = data.draw(
        st.lists(st.lists(st.integers(1, MOST_TOGETHER_TOKENS + 4), min_size=1, max_size=5), min_size=1, max_size=5)
    )
    texts = [[(row * 17 + place * place) % 61 for place in range(sum(own))] for row, own in enumerate(cuts)]
    found = logits_in_pieces(MODELS[name], texts, cuts, shuffle=data.draw(st.integers(0, 99)))
    for text, logits in zip(texts, found, strict=True):
        with torch.inference_mode():
            torch.testing.assert_close(logits, MODELS[name](torch.tensor([text]))[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_two_sequences_may_read_the_same_blocks() -> None:
    model, prefix = MODELS["plain"], list(range(8))
    cache = PagedCache(model.config, 6, BLOCK)
    cache.clear(range(1, 7))
    ids, rows = _rows(cache, Feed(ids=prefix, start=0, table=[2, 5], planned_length=8))
    model(ids, cache=rows)
    ids, rows = _rows(
        cache,
        Feed(ids=[30, 31], start=8, table=[2, 5, 1], planned_length=10),
        Feed(ids=[40, 41], start=8, table=[2, 5, 6], planned_length=10),
    )
    logits = model(ids, cache=rows)[0]
    for place, own in enumerate(([30, 31], [40, 41])):
        whole = model(torch.tensor([[*prefix, *own]]))[0, -2:]
        torch.testing.assert_close(logits[2 * place : 2 * place + 2], whole, atol=1e-5, rtol=1e-5)


def _rows(cache: PagedCache, *feeds: Feed) -> tuple[Tensor, PagedRows]:
    rows = PagedRows(cache, feeds)
    return rows.ids, rows


def test_memory_is_what_the_formula_says() -> None:
    config = MODELS["plain"].config
    cache = PagedCache(config, 9, BLOCK, torch.bfloat16)
    assert cache.num_bytes == 10 * PagedCache.block_bytes(config, BLOCK, torch.bfloat16)


@torch.inference_mode()
def test_a_large_pool_costs_no_more_than_what_is_read_of_it() -> None:
    model = MODELS["plain"]
    cache = PagedCache(model.config, 40_000, BLOCK)
    cache.clear([1, 2])
    ids, rows = _rows(cache, Feed(ids=[1, 2, 3], start=0, table=[1, 2], planned_length=8))
    model(ids, cache=rows)
    ids, rows = _rows(cache, Feed(ids=[4], start=3, table=[1, 2], planned_length=8))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model(ids, cache=rows)
    most = max(abs(event.self_cpu_memory_usage) for event in profile.events())
    assert 0 < most < 1_000_000 < cache.keys[0].numel() * 4
