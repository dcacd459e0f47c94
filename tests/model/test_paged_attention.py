"""Prompts that nothing was kept of are read by the compiled attention, to what the modules give with a plain cache."""

from __future__ import annotations

import pytest
import torch

from leveret.kernels.native import library
from leveret.model import attention
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.paged_cache import Feed, PagedCache, PagedRows


def a_model(window: int | None) -> Decoder:
    config = ModelConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, sliding_window=window, initializer_range=0.2,
    )  # fmt: skip
    model = Decoder(config).eval().requires_grad_(False)
    init_weights(model, seed=0)
    return model.to(torch.bfloat16)


@torch.inference_mode()
@pytest.mark.parametrize("window", [None, 5])
def test_fresh_prompts_are_read_as_without_a_cache(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if library.choose().library is None:
        pytest.skip(library.choose().reason)
    model = a_model(window)
    prompts = [list(range(1, 12)), list(range(20, 31)), list(range(40, 47))]
    cache = PagedCache(model.config, 6, 8, torch.bfloat16)
    cache.clear([1, 2, 3, 4, 5, 6])
    calls: list[int] = []
    kernel = attention.packed_attention

    def counted(*arguments: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append(arguments[0].shape[1])
        return kernel(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "packed_attention", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # it is left alone where threads would have nothing to do
    tables = ([1, 2], [3, 4], [5])
    feeds = [Feed(ids=ids, start=0, table=table, planned_length=16) for ids, table in zip(prompts, tables, strict=True)]
    rows = PagedRows(cache, feeds)
    found = model.hidden(rows.ids, cache=rows)[0]
    assert calls == [22, 7, 22, 7]  # two of a length together, in each of the two layers
    at = 0
    for ids, table in zip(prompts, tables, strict=True):
        alone = model.hidden(torch.tensor([ids]))[0]
        mine = found[at : at + len(ids)]
        assert (mine.float() - alone.float()).norm() / alone.float().norm() < 2e-2
        at += len(ids)
        # What was kept is what the next token reads.
        after = PagedRows(cache, [Feed(ids=[7], start=len(ids), table=table, planned_length=16)])
        following = model.hidden(after.ids, cache=after)[0, -1]
        whole = model.hidden(torch.tensor([[*ids, 7]]))[0, -1]
        assert (following.float() - whole.float()).norm() / whole.float().norm() < 2e-2
