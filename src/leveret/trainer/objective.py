"""The causal language-model loss: every trained position's id, predicted from what stands before it.

`data/packing.py` has shifted the targets already (targets[t] is the id that follows input_ids[t], -100 where
nothing is to be learnt), so nothing is shifted here. The trunk gives hidden states, in fine-tuning on a CPU those of
the trained positions only; the head's product and the softmax are done in pieces by `chunked_cross_entropy`, so the
(tokens, vocabulary) logits never exist at once.

With experts, the losses of their routers are added (routing.py), as long as gradients are taken.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Any

import torch
from torch import Tensor

from leveret.console import Console
from leveret.kernels.cross_entropy import IGNORED, chunked_cross_entropy
from leveret.model.decoder import Decoder
from leveret.model.moe import RouterLogits
from leveret.trainer.batches import Batch
from leveret.trainer.config import TrainingConfig
from leveret.trainer.parallel import computes_on
from leveret.trainer.routing import Around, nothing_around, routing_of
from leveret.trainer.world import World

MOST_TRAINED = 0.8
"""Share of trained positions up to which the last layer computes these only; beyond, there is little to save."""

PLACES = 64
"""Their number is a multiple of it: a product of a size never seen before takes oneDNN a millisecond longer."""


class CausalLoss:
    """Batch -> sum over trained tokens of weight * -log p(target), in nats: an objective of `optimizer_step`."""

    def __init__(self, model: Decoder, training: TrainingConfig | None = None) -> None:
        self.model = model
        self.routing = routing_of(model, training or TrainingConfig())

    def __call__(self, batch: Batch) -> Tensor:
        """The summed loss of one micro-batch, with the graph for backward."""
        if self.routing is None or not torch.is_grad_enabled():
            return summed_loss(self.model, batch)
        router = RouterLogits()
        loss = summed_loss(self.model, batch, router=router)
        return torch.add(loss, self.routing.loss(router, batch))

    def start_step(self, batches: Sequence[Batch], world: World, *, around: Around = nothing_around) -> None:
        """Let the routers' losses know what they are part of. around: what `__call__` is surrounded by."""
        if self.routing is not None:
            self.routing.start_step(batches, world, around=around)

    def record(self, world: World, console: Console) -> dict[str, Any]:
        """The load of the experts."""
        return {} if self.routing is None else self.routing.load.record(world, console)

    def progress(self) -> dict[str, str]:
        """The range of the experts' loads."""
        return {} if self.routing is None else self.routing.load.progress()


def summed_loss(model: Decoder, batch: Batch, *, router: MutableSequence[Tensor] | None = None) -> Tensor:
    """The loss without any balance term; `router` collects the experts' logits."""
    batch = batch.to(computes_on(model))
    targets, weights = batch.targets.flatten(), None if batch.weights is None else batch.weights.flatten()
    only = _places(targets, batch.trained_tokens)
    if only is not None:
        targets, weights = targets[only], None if weights is None else weights[only]
    hidden = model.hidden(
        batch.input_ids, positions=batch.positions, document_ids=batch.document_ids, router=router, only=only
    )  # (B, T, H) or (N, H)
    loss, _ = chunked_cross_entropy(hidden.flatten(0, -2), model.lm_head.weight, targets, token_weights=weights)
    return loss


def _places(targets: Tensor, num_trained: int) -> Tensor | None:
    """The places that are trained, and a few more, where it pays to compute no others; None: all are computed.

    On an accelerator all are: products of changing sizes would be compiled again and again.
    """
    count = -(-num_trained // PLACES) * PLACES
    if targets.device.type != "cpu" or not 0 < count <= MOST_TRAINED * len(targets):
        return None
    return torch.sort(targets != IGNORED, descending=True, stable=True).indices[:count]
