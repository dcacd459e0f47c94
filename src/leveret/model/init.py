"""Fresh weights: normal with the config's deviation, and smaller where a layer writes into the residual stream.

    embedding, head, inner Linears    N(0, s)                      s = initializer_range
    o_proj and down_proj              N(0, s / sqrt(2 * layers))   (GPT-2: 2 * layers such sums add up to one stream)
    norms                             1

With `copying` heads (after "Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828) attention starts out
as what trained models end up with: a token looks for tokens like itself, and passes on what it finds unchanged.

    k_proj   K ~ N(0, 1 / sqrt(H))      q_proj   K of its group + N(0, s)       q . k is large for equal inputs
    v_proj   V ~ N(0, 1 / sqrt(H))      o_proj   V^T / 2, shared in a group     o(v(x)) is like x

A small model trained for minutes then learns to copy arguments out of a request in far fewer steps (docs/log.md).

One generator on the CPU, filled in the order of the parameters: a seed gives the same model on every device.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from leveret.model.attention import SelfAttention
from leveret.model.decoder import Decoder

AttentionInit = Literal["normal", "copying"]


@torch.no_grad()
def init_weights(model: Decoder, seed: int, *, attention: AttentionInit = "normal") -> None:
    """Fill all parameters of `model`, in place; a tied head is the embedding and is filled once."""
    generator = torch.Generator().manual_seed(seed)
    inner = model.config.initializer_range
    into_stream = inner / math.sqrt(2 * model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        deviation = into_stream if name.endswith(("o_proj.weight", "down_proj.weight")) else inner
        parameter.copy_(_normal(parameter, deviation, generator))
    if attention == "copying":
        for module in model.modules():
            if isinstance(module, SelfAttention):
                _make_copying(module, inner, generator)


def _normal(like: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return torch.empty(like.shape).normal_(0.0, deviation, generator=generator)


def _make_copying(attention: SelfAttention, noise: float, generator: torch.Generator) -> None:
    query, key = attention.q_proj.weight, attention.k_proj.weight  # (heads * D, H), (groups * D, H)
    value, output = attention.v_proj.weight, attention.o_proj.weight  # (groups * D, H), (H, heads * D)
    width, hidden = attention.head_dim, key.shape[1]
    sharing = query.shape[0] // key.shape[0]
    deviation = 1 / math.sqrt(hidden)
    keys, values = _normal(key, deviation, generator), _normal(value, deviation, generator)
    key.copy_(keys)
    query.copy_(_for_each_head(keys, sharing, width) + _normal(query, noise, generator))
    value.copy_(values)
    output.copy_(_for_each_head(values, sharing, width).t() / (2 * sharing))


def _for_each_head(groups: Tensor, sharing: int, width: int) -> Tensor:
    """(groups * D, H) -> (heads * D, H): a group's rows for each head that reads it."""
    return groups.view(-1, width, groups.shape[1]).repeat_interleave(sharing, dim=0).flatten(0, 1)
