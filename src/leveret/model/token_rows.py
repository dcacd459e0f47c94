"""Training a few rows of the embedding and of the head, those of new tokens, while all other rows stay to the bit.

A LoRA leaves the embedding alone, so a token it has never seen would keep the row it was given at the start and never
learn. Training the whole tables instead multiplies what is trained, and moves every old word a little. Here the table
stays frozen under a small trained one:

    weight = table, with row t replaced by rows[i] for each trained token t = token_ids[i]

The decoder reads `weight` as it reads any table's. Where the head is the embedding, both share one `rows`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leveret.kernels.dense import linear
from leveret.model.decoder import Decoder


class TokenRows(nn.Module):
    """An embedding or a head (V, H) of which only some rows are trained.

    rows: the parameter to use, when another table shares it.
    """

    def __init__(self, base: nn.Embedding | nn.Linear, token_ids: Sequence[int], rows: nn.Parameter | None) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        ids = torch.tensor(list(token_ids), dtype=torch.long, device=base.weight.device)
        self.token_ids: Tensor
        self.register_buffer("token_ids", ids, persistent=False)
        self.rows = rows if rows is not None else nn.Parameter(base.weight.detach()[ids].float())

    @property
    def weight(self) -> Tensor:
        """The whole table, (V, H), in the dtype of the frozen one; gradients reach the trained rows only."""
        return self.base.weight.index_copy(0, self.token_ids, self.rows.to(self.base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.weight) if isinstance(self.base, nn.Embedding) else linear(x, self.weight)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{len(self.token_ids)} of {len(self.base.weight)} rows trained"


def train_rows(model: Decoder, token_ids: Sequence[int], *, head_ids: Sequence[int] | None = None) -> None:
    """Put trained rows on `model`'s embedding and head, in place; nothing else about the model changes.

    head_ids: the rows of an untied head; None: the same tokens.
    """
    embedding, head = model.embed_tokens, model.lm_head
    if token_ids:
        model.set_submodule("embed_tokens", TokenRows(embedding, token_ids, None))
    if model.config.tie_word_embeddings:
        if token_ids:
            assert isinstance(model.embed_tokens, TokenRows)
            model.set_submodule("lm_head", TokenRows(head, token_ids, model.embed_tokens.rows))
    elif chosen := token_ids if head_ids is None else head_ids:
        model.set_submodule("lm_head", TokenRows(head, chosen, None))


@torch.no_grad()
def fold_rows(model: Decoder) -> None:
    """Write trained rows into their tables, in place: the same numbers, without building the table each time."""
    for name in ("embed_tokens", "lm_head"):
        table = model.get_submodule(name)
        if isinstance(table, TokenRows):
            folded = table.base
            if name == "embed_tokens" or not model.config.tie_word_embeddings:
                folded.weight[table.token_ids] = table.rows.to(folded.weight.dtype)
            model.set_submodule(name, folded)
    model.tie_weights()
