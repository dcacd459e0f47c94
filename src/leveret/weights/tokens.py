"""Room for new tokens: rows are added to the embedding and to the head, and the old rows stay as they are, to the bit.

A new row is the mean of old rows: of the pieces the new token stands for, if they are given, else of all. A random row
is worse than a mean one: its logit is unlike any that the trained states produce, and disturbs the old tokens' softmax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leveret.errors import ConfigError
from leveret.model.decoder import Decoder


@torch.no_grad()
def resize_tokens(model: Decoder, new_vocab_size: int, *, sources: Sequence[Sequence[int]] | None = None) -> None:
    """Append rows to `model`, in place, up to `new_vocab_size`; its config follows.

    sources: for each new row, the old ids whose rows are averaged; None or an empty entry: the mean of all old rows.
    ConfigError if the size would shrink or `sources` does not fit.
    """
    old_size = model.config.vocab_size
    added = new_vocab_size - old_size
    if added < 0:
        raise ConfigError(f"the vocabulary has {old_size} rows, it cannot shrink to {new_vocab_size}",
                          hint="does the tokenizer belong to this model?")  # fmt: skip
    chosen = [list(entry) for entry in sources] if sources is not None else [[] for _ in range(added)]
    if len(chosen) != added:
        raise ConfigError(f"{added} rows are added, but {len(chosen)} lists of old ids were given")
    if wrong := sorted({old for entry in chosen for old in entry if not 0 <= old < old_size}):
        raise ConfigError(f"ids {wrong[:5]} are no old rows; those are 0 to {old_size - 1}")
    model.embed_tokens.weight = _extended(model.embed_tokens.weight, chosen)
    model.embed_tokens.num_embeddings = new_vocab_size
    if not model.config.tie_word_embeddings:
        model.lm_head.weight = _extended(model.lm_head.weight, chosen)
    model.lm_head.out_features = new_vocab_size
    model.config = dataclasses.replace(model.config, vocab_size=new_vocab_size)
    model.tie_weights()


def _extended(old: Tensor, sources: list[list[int]]) -> nn.Parameter:
    mean = old.float().mean(dim=0)
    rows: list[Tensor] = [old.float()[entry].mean(dim=0) if entry else mean for entry in sources]
    whole = torch.cat([old, torch.stack(rows).to(old.dtype)]) if rows else old
    return nn.Parameter(whole, requires_grad=old.requires_grad)
