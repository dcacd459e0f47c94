"""Perplexity of texts under a model: exp of the mean negative log likelihood of a token, over fixed windows.

    perplexity = exp( - 1/N  sum over windows, sum over t of  log p(id_t | the ids before it in its window) )

Windows do not overlap and the first id of each is not predicted, so the figure depends on the window length:
compare only figures of the same windows. It is a token measure; models with different tokenizers are compared in
bits per byte instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from leveret.data.readers import read_documents
from leveret.errors import DataError
from leveret.tokenizer.files import Tokenizer

WINDOW_TOKENS = 512
"""Window length for measuring, or the model's context if that is shorter."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A piece of a text as token ids."""

    name: str
    """Which text, and from which token on."""
    ids: tuple[int, ...]
    """At least two."""


def windows_of(name: str, ids: Sequence[int], *, length: int, bos_id: int | None = None) -> list[Window]:
    """Cut a text into windows of at most `length` ids, begun by BOS if there is one; a lone last id is left out."""
    begin = () if bos_id is None else (bos_id,)
    step = length - len(begin)
    pieces = [(start, (*begin, *ids[start : start + step])) for start in range(0, len(ids), step)]
    return [Window(name=f"{name} from token {start}", ids=piece) for start, piece in pieces if len(piece) > 1]


def windows_from_files(
    paths: Sequence[Path], tokenizer: Tokenizer, *, context_tokens: int, most_tokens: int
) -> list[Window]:
    """Windows of text files (or JSON Lines with a `text`), an equal share of `most_tokens` from the start of each.

    Raises DataError for a file that cannot be read or holds fewer than two tokens.
    """
    length = min(WINDOW_TOKENS, context_tokens)
    share = max(2, most_tokens // max(1, len(paths)))
    windows: list[Window] = []
    for path in paths:
        found: list[Window] = []
        left = share
        for number, document in enumerate(read_documents([path]), start=1):
            # No token is longer than a few dozen characters, so a long text need not be encoded whole.
            ids = tokenizer.encode(document.text[: 32 * left])[:left]
            name = path.name if number == 1 else f"{path.name} document {number}"
            found += windows_of(name, ids, length=length, bos_id=tokenizer.bos_id)
            left -= len(ids)
            if left < 2:
                break
        if not found:
            raise DataError("the text is too short to measure perplexity on", path=path)
        windows += found
    return windows


@torch.inference_mode()
def perplexity(model: nn.Module, windows: Sequence[Window]) -> float:
    """Perplexity over all windows, each run by itself; sums in float64."""
    assert windows, "perplexity needs at least one window"
    device = next(model.parameters()).device
    loss, predicted = 0.0, 0
    for window in windows:
        ids = torch.tensor([window.ids], device=device)
        logits = model(ids)[0, :-1].float()
        loss += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        predicted += len(window.ids) - 1
    mean = loss / predicted
    return math.exp(mean) if mean < 700 else math.inf
