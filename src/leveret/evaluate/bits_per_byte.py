"""Bits per byte: how many bits a model needs for a byte of text, whatever its tokenizer.

    bits per byte = sum over tokens of -log2 p(token | the tokens before it)  /  UTF-8 bytes of the text

The denominator is taken from the text itself, never from decoded tokens: a token may be part of a character, and
its decoded form (U+FFFD, three bytes) would count bytes that are not there.

Documents are scored one by one. A document begins with BOS where the tokenizer has one, and its first token is
predicted from it; without BOS nothing stands before the first token and it is charged log2(vocabulary size). The end
of a document is not scored: EOS has no bytes. A document longer than a window is cut into windows that overlap by one
token, so every token is predicted exactly once, those after a cut from few tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from leveret.engine.sampler import no_numbers
from leveret.tokenizer.files import Tokenizer

PROTOCOL = (
    "sum of -log2 p(token) / UTF-8 bytes of the text; documents one by one, begun by BOS if the tokenizer has one "
    "(else the first token costs log2 of the vocabulary size), EOS not scored; windows overlap by one token"
)
_LOGITS_AT_ONCE = 2**25
"""Entries of the logits of one forward pass, at most (128 MiB in fp32)."""


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """The cost of some text."""

    bits: float
    num_bytes: int
    num_tokens: int
    num_documents: int
    context_token: str
    """What the first token of a document was predicted from: `bos` or `nothing`."""
    window_tokens: int

    @property
    def bits_per_byte(self) -> float:
        """Lower is better; 8 is a model that knows nothing."""
        return self.bits / self.num_bytes


def bits_per_byte(
    model: nn.Module, tokenizer: Tokenizer, texts: Iterable[str], *, vocab_size: int, window_tokens: int
) -> TextScore:
    """Score documents. `model`: ids (B, T) to logits (B, T, V); `vocab_size`: V. Empty documents count nothing.

    WeightsError when the model's answers are no numbers.
    """
    bits, num_bytes, num_tokens, num_documents = 0.0, 0, 0, 0
    windows: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text)
        if not ids:
            continue
        num_bytes += len(text.encode())
        num_tokens += len(ids)
        num_documents += 1
        if tokenizer.bos_id is None:
            bits += math.log2(vocab_size)
        else:
            ids = [tokenizer.bos_id, *ids]
        windows += _windows(ids, window_tokens)
    windows.sort(key=len)
    rows = max(1, _LOGITS_AT_ONCE // (vocab_size * window_tokens))
    for start in range(0, len(windows), rows):
        bits += _bits(model, windows[start : start + rows])
    return TextScore(
        bits=bits,
        num_bytes=num_bytes,
        num_tokens=num_tokens,
        num_documents=num_documents,
        context_token="nothing" if tokenizer.bos_id is None else "bos",
        window_tokens=window_tokens,
    )


def _windows(ids: Sequence[int], length: int) -> Iterator[list[int]]:
    """Pieces of at most `length` ids; each begins with the last id of the one before."""
    for start in range(0, len(ids) - 1, length - 1):
        yield list(ids[start : start + length])


@torch.inference_mode()
def _bits(model: nn.Module, windows: Sequence[list[int]]) -> float:
    """Bits of all ids but the first of each window; rows are padded on the right, where causal attention is blind."""
    device = next(model.parameters()).device
    longest = max(map(len, windows))
    ids = torch.tensor([[*window, *[0] * (longest - len(window))] for window in windows], device=device)  # (B, T)
    targets = torch.tensor([[*window[1:], *[-100] * (longest - len(window))] for window in windows], device=device)
    logits = model(ids[:, :-1])  # (B, T-1, V)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="none")
    bits = float(losses.double().sum()) / math.log(2)
    if math.isnan(bits):
        raise no_numbers()
    return bits
