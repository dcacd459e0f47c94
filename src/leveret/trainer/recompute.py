"""Activation recomputation: keep only the inputs of each layer, and compute the rest again in backward.

Backward needs what forward computed. Kept, that is some 34 H numbers a token and layer; recomputed, it is H, plus one
layer's worth at a time, for one more forward pass: a third more arithmetic (Chen et al. 2016, 1604.06174). Gradients
are the same to the bit: the same operations run on the same inputs, with the same random numbers.

The layers are wrapped from outside, by replacing the `forward` of each for as long as the block lasts; names of
parameters, hooks and sharding stay as they are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Literal

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def recomputed_layers(model: nn.Module, what: Literal["nothing", "layers"]) -> Iterator[None]:
    """Within the block, the layers of `model` (its `layers`) forget their activations, if `what` says so."""
    layers = list(getattr(model, "layers", ())) if what == "layers" else []
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own shows again
