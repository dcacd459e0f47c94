"""The causal language-model loss: every trained position's id, predicted from what stands before it.

`data/packing.py` has shifted the targets already (targets[t] is the id that follows input_ids[t], -100 where
nothing is to be learnt), so nothing is shifted here. The trunk gives hidden states; the head's product and the
softmax are done in pieces by `chunked_cross_entropy`, so the (tokens, vocabulary) logits never exist at once.

With experts, the load-balancing loss of the micro-batch is added, times its coefficient and the micro-batch's
share of the step's trained tokens: cutting a step into more micro-batches does not make it count more.
"""

from __future__ import annotations

from collections.abc import MutableSequence

import torch
from torch import Tensor

from leveret.kernels.cross_entropy import chunked_cross_entropy
from leveret.model.decoder import Decoder
from leveret.model.moe import RouterLogits, load_balancing_loss
from leveret.trainer.batches import Batch


class CausalLoss:
    """Batch -> sum over trained tokens of weight * -log p(target), in nats: an objective of `optimizer_step`."""

    def __init__(self, model: Decoder) -> None:
        self.model = model

    def __call__(self, batch: Batch) -> Tensor:
        """The summed loss of one micro-batch, with the graph for backward."""
        moe = self.model.config.moe
        if moe is None:
            return summed_loss(self.model, batch)
        router = RouterLogits()
        loss = summed_loss(self.model, batch, router=router)
        counted = (batch.document_ids >= 0).flatten().to(loss.device)
        balance = load_balancing_loss(router, moe, counted)
        return torch.add(loss, balance, alpha=moe.router_aux_loss_coef * batch.total_weight)


def summed_loss(model: Decoder, batch: Batch, *, router: MutableSequence[Tensor] | None = None) -> Tensor:
    """The loss without any balance term; `router` collects the experts' logits."""
    batch = batch.to(model.lm_head.weight.device)
    hidden = model.hidden(
        batch.input_ids, positions=batch.positions, document_ids=batch.document_ids, router=router
    )  # (B, T, H)
    loss, _ = chunked_cross_entropy(
        hidden.flatten(0, 1),
        model.lm_head.weight,
        batch.targets.flatten(),
        token_weights=None if batch.weights is None else batch.weights.flatten(),
    )
    return loss
