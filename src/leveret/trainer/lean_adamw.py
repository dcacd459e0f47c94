"""AdamW in less memory: smaller averages, no fp32 masters, no gradient buffer, each of them by choice.

What AdamW (adamw.py) keeps for each parameter of a model that computes in bf16, in bytes, and what is left of it here:

                            weights  masters  gradients  averages   all
    adamw                      2        4         4          8       18
    adamw_bf16                 2        4         4          4       14
    adamw_8bit                 2        4         4          2       12     averages in 8 bits (moments.py)
     + stochastic_rounding     2        0         4          2        8     bf16 weights are the truth (stochastic.py)
     + optimizer_in_backward   2        0         0          2        4     one parameter's gradient at a time

A parameter is read in pieces of a few million numbers: as fp32, updated by the same fused kernel, and stored again.

*In backward*: the hook that PyTorch calls when a parameter's gradient is complete updates the parameter on the spot
and drops the gradient (Lv et al. 2023, 2306.09782). The price: the step must be one micro-batch, and the norm of the
whole gradient is known only when everything has moved. So `max_grad_norm` is refused there; what can be bounded is each
parameter's own norm (`max_parameter_grad_norm`). A parameter whose gradient is not finite is left alone, and the step
then ends the run; others have moved by then, so the run goes on from its last checkpoint.

Whatever is random (rounding) depends on the seed, the number of the update and the parameter, and on nothing else: a
resumed run rounds as the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from leveret.errors import ConfigError
from leveret.precision.dynamic8 import BLOCK
from leveret.precision.stochastic import generator_for, round_to_bf16
from leveret.trainer.adamw import Slot, is_decayed, places_of, refuse_other_places
from leveret.trainer.config import TrainingConfig
from leveret.trainer.moments import MomentFormat, Moments

SMALLEST_COMPRESSED = 4096
"""Parameters below this many numbers keep fp32 averages: nothing would be saved."""
PIECE = 2**22
"""Numbers updated at a time; a multiple of the block."""
FORMATS: dict[str, MomentFormat] = {"adamw": "fp32", "adamw_bf16": "bf16", "adamw_8bit": "8bit"}
"""`training.optimizer` -> how its averages are stored."""


class LeanAdamW:
    """The optimizer of one model. Building it moves the model's trainable parameters into one buffer of `dtype`."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        *,
        dtype: torch.dtype,
        seed: int,
        sum_over_processes: Callable[[Tensor], None] | None = None,
    ) -> None:
        if sum_over_processes is not None and config.optimizer_in_backward:
            raise ConfigError(
                "training.optimizer_in_backward updates before the gradients of several processes could be summed",
                hint="turn it off, or train in one process",
            )
        self.config, self.seed = config, seed
        self._sum_over_processes = sum_over_processes
        self.updates = 0
        self.updates_in_backward = config.optimizer_in_backward
        self._decays: list[bool] = []
        self.slots, size, compressed = self._lay_out(model)
        device = self.slots[0].parameter.device
        self.weights = torch.zeros(size, dtype=dtype, device=device)
        self._rounds = config.stochastic_rounding and dtype == torch.bfloat16
        separate = dtype != torch.float32 and not self._rounds
        self.masters = torch.zeros(size, dtype=torch.float32, device=device) if separate else self.weights
        self.gradients = torch.zeros(0 if self.updates_in_backward else size, dtype=torch.float32, device=device)
        self._exp_avg, self._exp_avg_sq = (
            Moments(
                name, size, compressed=compressed, stored_as=FORMATS[config.optimizer], signed=signed, device=device
            )
            for name, signed in (("exp_avg", True), ("exp_avg_sq", False))
        )
        self._filled = [False] * len(self.slots)
        self._learning_rate: float | None = None
        self._squares = torch.zeros(len(self.slots), dtype=torch.float32, device=device)
        for slot in self.slots:
            slot.view(self.masters).copy_(slot.parameter.detach())
            slot.parameter.data = slot.view(self.weights)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        self._push()
        receive = self._updater if self.updates_in_backward else self._collector
        self._hooks = [
            slot.parameter.register_post_accumulate_grad_hook(receive(index, slot))  # type: ignore[no-untyped-call]
            for index, slot in enumerate(self.slots)
        ]

    def start_step(self, *, learning_rate: float) -> None:
        """Forget the gradients of the step before; with updates in backward, they happen from here on."""
        self._filled = [False] * len(self.slots)
        self._learning_rate = learning_rate
        self._squares.zero_()

    def gradient_norm(self) -> Tensor:
        """The length of the gradient of the whole model (before clipping), a scalar tensor."""
        if self.updates_in_backward:
            return self._squares.sum().sqrt()
        for slot, filled in zip(self.slots, self._filled, strict=True):
            if not filled:  # no token of this step reached it (an expert nobody chose)
                slot.view(self.gradients).zero_()
        if self._sum_over_processes is not None:
            self._sum_over_processes(self.gradients)
        norm: Tensor = torch.linalg.vector_norm(self.gradients)
        return norm

    @torch.no_grad()
    def update(self, *, learning_rate: float, gradient_norm: float) -> None:
        """One update of what has not been updated in backward: everything, or what no token of the step reached."""
        limit = self.config.max_grad_norm
        divide_by = None
        if limit is not None and gradient_norm > limit:
            divide_by = torch.tensor((gradient_norm + 1e-6) / limit, device=self.weights.device)
        for index, slot in enumerate(self.slots):
            if not self.updates_in_backward:
                self._update_slot(index, slot.view(self.gradients), learning_rate, divide_by)
            elif not self._filled[index]:
                self._update_slot(index, torch.zeros_like(slot.parameter), learning_rate, None)
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds; with `updates` and `layout` they are the whole optimizer and the weights."""
        return {"masters": self.masters, **self._exp_avg.state(), **self._exp_avg_sq.state()}

    def layout(self) -> dict[str, list[int]]:
        """Name -> [start, *shape] of every trained parameter, to see that a checkpoint fits this model."""
        return places_of(self.slots)

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor], *, updates: int, layout: dict[str, list[int]]) -> None:
        """Take over a checkpoint's tensors and show them to the model. CheckpointError when the model differs."""
        refuse_other_places(layout, self.layout())
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.updates = updates
        self._push()

    def close(self) -> None:
        """Take the hooks off the model and free everything but its weights."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        empty = self.weights.new_empty(0)
        self.masters, self.gradients = empty, empty
        del self._exp_avg, self._exp_avg_sq

    def _lay_out(self, model: nn.Module) -> tuple[list[Slot], int, int]:
        """The slots, compressed ones first, each beginning with a block; the numbers in all and in compressed ones."""
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        slots: list[Slot] = []
        size = compressed = 0
        for name, parameter in sorted(trainable, key=lambda item: item[1].numel() < SMALLEST_COMPRESSED):  # stable
            slots.append(Slot(name=name, parameter=parameter, start=size))
            self._decays.append(is_decayed(parameter, name=name, embeddings=self.config.decay_embeddings))
            size += -(-parameter.numel() // BLOCK) * BLOCK
            compressed = size if parameter.numel() >= SMALLEST_COMPRESSED else compressed
        return slots, size, compressed

    def _update_slot(self, index: int, gradient: Tensor, learning_rate: float, divide_by: Tensor | None) -> None:
        slot, flat = self.slots[index], gradient.reshape(-1)
        generator = generator_for(flat.device, self.seed, self.updates, index)
        # Of a gradient that is not finite, the kernel takes note and changes nothing.
        skip = (~torch.isfinite(flat.abs().max())).float() if self.updates_in_backward else None
        for offset in range(0, flat.numel(), PIECE):
            piece = flat[offset : offset + PIECE].float()
            start, stop = slot.start + offset, slot.start + offset + piece.numel()
            weights = self.masters[start:stop].float()
            first, second = self._exp_avg.read(start, stop), self._exp_avg_sq.read(start, stop)
            # The kernel counts up itself before it uses the count.
            count = torch.tensor(float(self.updates), device=flat.device)
            adamw(
                [weights], [piece], [first], [second], [], [count], fused=True, grad_scale=divide_by, found_inf=skip,
                amsgrad=False, lr=learning_rate, beta1=self.config.betas[0], beta2=self.config.betas[1],
                eps=self.config.eps, weight_decay=self.config.weight_decay if self._decays[index] else 0.0,
                maximize=False,
            )  # fmt: skip
            self._exp_avg.write(start, first, generator)
            self._exp_avg_sq.write(start, second, generator)
            self.weights[start:stop] = round_to_bf16(weights, generator) if self._rounds else weights

    def _push(self) -> None:
        if self.weights is not self.masters:
            self.weights.copy_(self.masters)

    def _collector(self, index: int, slot: Slot) -> Callable[[Tensor], None]:
        target = slot.view(self.gradients)

        def collect(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            target.add_(gradient) if self._filled[index] else target.copy_(gradient)
            self._filled[index] = True
            parameter.grad = None

        return collect

    def _updater(self, index: int, slot: Slot) -> Callable[[Tensor], None]:
        limit = self.config.max_parameter_grad_norm

        @torch.no_grad()
        def update(parameter: Tensor) -> None:
            gradient, learning_rate = parameter.grad, self._learning_rate
            assert gradient is not None and learning_rate is not None
            assert not self._filled[index], "a second backward in one step would update twice"
            self._filled[index] = True
            parameter.grad = None
            norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
            self._squares[index] = norm.square()
            divide_by = None if limit is None else ((norm + 1e-6) / limit).clamp(min=1.0)
            self._update_slot(index, gradient, learning_rate, divide_by)

        return update
