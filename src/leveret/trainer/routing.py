"""What a mixture's routers learn besides the text: an even load and small logits, exact however a step is cut.

    loss of a step = mean loss of its trained tokens + router_aux_loss_coef * balance + router_z_loss_coef * z

Both terms (formulas: model/moe.py) are over the tokens that are not padding, of all layers together. z is a mean over
tokens, so each micro-batch brings its part of the sum, divided by the tokens of the whole step. The balance multiplies
two means, the share of choices and the probabilities, and a product of means is not the mean of products; so it must be
said over what it is taken (`router_balance`):

    micro_batch   each micro-batch of each process is balanced by itself, and counts by its tokens. What transformers
                  does; the smaller the micro-batch, the stricter, for then single texts must use all experts evenly.
    step          shares and probabilities are those of all tokens of the step, in all processes. Probabilities add up
                  over micro-batches, but backward of the first needs the shares of the last: with several micro-batches
                  the choices are counted by a forward pass before, a third more arithmetic. With one in each process,
                  the counts are summed between forward and loss, which costs nothing.

With `step`, weights do not depend on the cut into micro-batches nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leveret.errors import ConfigError
from leveret.model.config import MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.moe import RouterLogits, SparseMixture, expert_choices, load_balancing_loss, router_z_loss
from leveret.trainer.batches import Batch
from leveret.trainer.config import TrainingConfig
from leveret.trainer.expert_load import ExpertLoad
from leveret.trainer.parallel import computes_on
from leveret.trainer.world import World

KEYS = ("router_aux_loss_coef", "router_z_loss_coef", "router_balance", "freeze_router")
"""What of TrainingConfig is about routers."""

Around = Callable[[Batch], AbstractContextManager[None]]
"""What a forward pass over a batch is surrounded by, such as noise on what the model reads."""


def nothing_around(batch: Batch) -> AbstractContextManager[None]:
    """A forward pass as it is."""
    return nullcontext()


@dataclass(kw_only=True)
class _Step:
    """What is known of a step before its first forward pass, over all processes."""

    weight: float
    """The weights of its trained tokens, which its summed loss is divided by."""
    tokens: float
    """Its tokens that are not padding."""
    world: World
    share: Tensor | None = None
    """(E,) choices of each expert by a token, in all layers; None: each micro-batch has its own, or it comes later."""


class Routing:
    """The routers' losses, and the load of their experts."""

    def __init__(self, model: Decoder, moe: MoeConfig, training: TrainingConfig) -> None:
        self.model, self.moe = model, moe
        wanted = training.router_aux_loss_coef
        self.aux_loss_coef = moe.router_aux_loss_coef if wanted is None else wanted
        self.z_loss_coef = training.router_z_loss_coef
        self.over_step = training.router_balance == "step"
        self.load = ExpertLoad()
        self._step: _Step | None = None

    def start_step(self, batches: Sequence[Batch], world: World, *, around: Around = nothing_around) -> None:
        """Count what the step holds; these are this process's micro-batches, and all processes have as many.

        around: what surrounds the forward pass of a micro-batch.
        """
        self.load.start_step()
        weight, tokens = world.sum(
            sum(batch.total_weight for batch in batches), sum(_count_tokens(batch) for batch in batches)
        )
        self._step = _Step(weight=weight, tokens=tokens, world=world)
        if self.over_step and len(batches) > 1:
            self._step.share = self._share(self._choices(batches, around), self._step)

    def loss(self, router: RouterLogits, batch: Batch) -> Tensor:
        """What the logits of one micro-batch add to its summed loss."""
        tokens = _count_tokens(batch)
        step = self._step or _Step(weight=batch.total_weight, tokens=tokens, world=World(torch.device("cpu")))
        counted = _counted(batch).to(router[0].device)
        choices = expert_choices(router, self.moe, counted)  # (L, E)
        share = step.share
        if self.over_step and share is None:
            share = self._share(choices, step)
        if tokens == 0:
            nothing = router[0].sum() * 0.0
            self.load.add(choices, balance=nothing.detach(), z=nothing.detach(), tokens=0)
            return nothing
        balance = load_balancing_loss(router, self.moe, counted, share=share)
        z = router_z_loss(router, counted) if self.z_loss_coef else balance.new_zeros(())
        self.load.add(choices, balance=balance.detach(), z=z.detach(), tokens=tokens)
        return (self.aux_loss_coef * balance + self.z_loss_coef * z) * (step.weight * tokens / step.tokens)

    @torch.no_grad()
    def _choices(self, batches: Sequence[Batch], around: Around) -> Tensor:
        """How many tokens will choose each expert, (L, E); the random numbers drawn here are drawn again later."""
        device = computes_on(self.model)
        counts = []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for batch in batches:
                router, placed = RouterLogits(), batch.to(device)
                with around(batch):
                    self.model.hidden(
                        placed.input_ids, positions=placed.positions, document_ids=placed.document_ids, router=router
                    )
                counts.append(expert_choices(router, self.moe, _counted(batch).to(device)))
        return torch.stack(counts).sum(0)

    def _share(self, choices: Tensor, step: _Step) -> Tensor:
        """Counts of this process (L, E) -> shares of the step (E,)."""
        counts = choices.sum(0)
        step.world.sum_(counts)
        return counts / (len(choices) * max(step.tokens, 1))


def routing_of(model: Decoder, training: TrainingConfig) -> Routing | None:
    """The losses that `training` asks for; None when `model` has no experts. ConfigError when it asks in vain."""
    if model.config.moe is not None:
        return Routing(model, model.config.moe, training)
    for key in KEYS:
        value = getattr(training, key)
        if value != type(training).model_fields[key].default:
            raise ConfigError(
                f"training.{key} is {value}, but the model is a {model.config.family} without experts",
                hint=f"leave {key} out, or train a mixture",
            )
    return None


def freeze_routers(model: nn.Module) -> None:
    """Leave the routers as they are: they choose, and pass gradients on, but are not trained."""
    for module in model.modules():
        if isinstance(module, SparseMixture):
            module.gate.requires_grad_(False)


def _counted(batch: Batch) -> Tensor:
    """(B T,) bool: tokens that are neither padding nor there only to make micro-batches equally many."""
    counted = (batch.document_ids >= 0).flatten()
    return counted if batch.keys else torch.zeros_like(counted)


def _count_tokens(batch: Batch) -> int:
    return int(_counted(batch).sum())
