"""Perplexity over windows, against a computation written out here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from leveret.engine.perplexity import Window, perplexity, windows_from_files, windows_of
from leveret.errors import DataError
from leveret.tokenizer.train import train_byte_bpe


class Uniform(nn.Module):
    """Every id is equally likely."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(size))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.logit.expand(*ids.shape, -1)


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    windows = windows_of("text", list(range(23)), length=10)
    assert perplexity(Uniform(50), windows) == pytest.approx(50)


def test_every_token_counts_once_whatever_the_window_lengths() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))
    windows = [Window(name="a", ids=(1, 2, 3, 4, 5, 6, 7)), Window(name="b", ids=(8, 9))]
    losses = []
    for window in windows:
        log_probabilities = model(torch.tensor(window.ids)).log_softmax(-1)
        losses += [-log_probabilities[at, following].item() for at, following in enumerate(window.ids[1:])]
    assert perplexity(model, windows) == pytest.approx(torch.tensor(losses).mean().exp().item())


def test_windows_cover_the_text_begin_with_bos_and_drop_a_lone_last_id() -> None:
    windows = windows_of("a.txt", [5, 6, 7, 8, 9], length=3, bos_id=1)
    assert [window.ids for window in windows] == [(1, 5, 6), (1, 7, 8), (1, 9)]
    assert windows[1].name == "a.txt from token 2"
    assert [window.ids for window in windows_of("a", [5, 6, 7], length=2)] == [(5, 6)]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_files_without_text_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    tokenizer = train_byte_bpe(["abc"], vocab_size=257, special_tokens=[])
    with pytest.raises(DataError, match=r"text\.txt"):
        windows_from_files([path], tokenizer, context_tokens=64, most_tokens=100)


def test_the_documents_of_a_jsonl_file_share_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "abcabc"}\n{"text": "cba"}\n{"text": "abcabcabc"}\n', encoding="utf-8")
    tokenizer = train_byte_bpe(["x"], vocab_size=256, special_tokens=[])
    windows = windows_from_files([path], tokenizer, context_tokens=4, most_tokens=11)
    assert [tokenizer.decode(window.ids) for window in windows] == ["abca", "bc", "cba", "ab"]
    assert [window.name.partition(" from")[0] for window in windows] == [
        "text.jsonl",
        "text.jsonl",
        "text.jsonl document 2",
        "text.jsonl document 3",
    ]
