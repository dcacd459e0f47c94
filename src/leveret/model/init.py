"""Fresh weights: normal with the config's deviation, and smaller where a layer writes into the residual stream.

    embedding, head, inner Linears    N(0, s)                      s = initializer_range
    o_proj and down_proj              N(0, s / sqrt(2 * layers))   (GPT-2: 2 * layers such sums add up to one stream)
    norms                             1

One generator on the CPU, filled in the order of the parameters: a seed gives the same model on every device.
"""

from __future__ import annotations

import math

import torch

from leveret.model.decoder import Decoder


@torch.no_grad()
def init_weights(model: Decoder, seed: int) -> None:
    """Fill all parameters of `model`, in place; a tied head is the embedding and is filled once."""
    generator = torch.Generator().manual_seed(seed)
    inner = model.config.initializer_range
    into_stream = inner / math.sqrt(2 * model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        deviation = into_stream if name.endswith(("o_proj.weight", "down_proj.weight")) else inner
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator))
