"""An embedding stored in eight bits a number and one scale a token, and written out when it is read.

No reader of GPTQ takes an embedding that is not whole, so others must refuse such a file. It says `quant_method:
leveret`, and the table has an axis more than theirs: a reader that skips methods it does not know stops at the shape,
where it would otherwise take numbers for weights. In the file

    embed_tokens.weight         int8  (1, V, H)   from -127 to 127
    embed_tokens.weight_scale   (V, 1), in the dtype of the model: weight[v] = scale[v] * number[v]

Half a table of 16 bits is saved on the disk, which is a tenth of a small model in 4 bits; in memory it is whole.

Shape legend: V vocabulary, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127


def round_table(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (V, H) int8 and scales (V, 1), in the dtype of the weight, of a weight (V, H)."""
    whole = weight.detach().float()
    scale = (whole.abs().amax(dim=1, keepdim=True) / LARGEST).to(weight.dtype)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    return (whole / divisor).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def table_of(numbers: Tensor, scale: Tensor) -> Tensor:
    """The weight (V, H), in the dtype of its scales."""
    return (numbers.float() * scale.float()).to(scale.dtype)


def store_table(embedding: nn.Embedding, numbers: Tensor, scale: Tensor) -> None:
    """Make an embedding hold what a file holds; it cannot be used until `write_out_table`."""
    embedding.weight = nn.Parameter(numbers.unsqueeze(0), requires_grad=False)
    embedding.register_parameter("weight_scale", nn.Parameter(scale, requires_grad=False))


def expect_table(embedding: nn.Module) -> None:
    """Prepare an embedding to be filled from such a file."""
    assert isinstance(embedding, nn.Embedding)
    device = embedding.weight.device
    rows, columns = embedding.weight.shape
    store_table(
        embedding,
        torch.zeros(rows, columns, dtype=torch.int8, device=device),
        torch.zeros(rows, 1, dtype=embedding.weight.dtype, device=device),
    )


def write_out_table(embedding: nn.Embedding) -> None:
    """Make an embedding that was filled from such a file an ordinary one; any other stays as it is."""
    if (scale := getattr(embedding, "weight_scale", None)) is not None:
        embedding.weight = nn.Parameter(table_of(embedding.weight.squeeze(0), scale))
        del embedding.weight_scale
