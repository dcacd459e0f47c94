"""A second model that is the first one with an adapter on it, and shares its weights.

    base = load_model("models/base")
    english = adapted(base, "models/english-lora")     # a few megabytes more, not a second model

The modules are copied, the tensors are not; what an adapter changes (tables of tokens, layers saved whole) is put in
the place of the shared tensor and never written into it. So `base` stays as it is, and each adapter can be dropped.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import torch
from torch import nn

from leveret.model.decoder import Decoder
from leveret.model.token_rows import TokenRows, fold_rows
from leveret.precision.linear import QuantizedLinear
from leveret.weights.adapter_load import load_adapter


@torch.no_grad()
def adapted(model: Decoder, folder: str | Path, *, fingerprint: str | None = None) -> Decoder:
    """`model` with the adapter in `folder`, as a new model; `model` gives the answers it gave before.

    Neither can be trained any more: weights under an adapter are frozen.

    fingerprint: of the files `model` was loaded from; if the adapter was trained on others, there is a warning.
    Raises ConfigError, MissingWeights, UnexpectedWeights, ShapeMismatch or CorruptedFile, as `load_adapter` does.
    """
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.settle()
    kept = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    other = copy.deepcopy(model, kept)
    load_adapter(other, folder, fingerprint=fingerprint)
    for name in ("embed_tokens", "lm_head"):
        table = other.get_submodule(name)
        if isinstance(table, TokenRows):  # its rows are about to be written into the table
            table.base.weight = nn.Parameter(table.base.weight.clone(), requires_grad=False)
    fold_rows(other)
    return other.eval()
