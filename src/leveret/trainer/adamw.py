"""AdamW over one flat fp32 copy of the weights, under a model that computes in bf16 or fp32.

A bf16 weight has 8 bits of mantissa: an update smaller than 1/256 of it is lost. So the truth is kept in fp32
*masters*; the model holds their rounding, and gradients are summed into fp32 too. All of it is flat:

    weights    (N,) model dtype   every parameter of the model is a view into it
    masters    (N,) fp32          in fp32 the same memory as `weights`
    gradients  (N,) fp32          filled by a hook as backward finishes each parameter, which then frees its own
    exp_avg    (N,) fp32
    exp_avg_sq (N - M,) fp32      of all but Muon's matrices, M numbers (0 with adamw)

One update is then two calls of PyTorch's fused kernel (decayed part, undecayed part) and one cast, whatever the
number of parameters; clipping rides along as the kernel's gradient scale instead of a pass of its own. The rule
(Loshchilov and Hutter 2019, with g the clipped gradient and k counted from 1):

    w <- w - lr * decay * w
    m <- b1 * m + (1 - b1) * g          v <- b2 * v + (1 - b2) * g^2
    w <- w - lr * (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)

With `optimizer: muon` the matrices inside the layers are updated by Muon instead (muon.py); they lie first in the
buffers, `exp_avg` holds their momentum, and no average of squares is kept of them.

`plain_adamw_` below writes the same in five lines and is the reference in the tests. Vectors (norm gains, biases)
are not decayed; matrices and embeddings are (embeddings unless `decay_embeddings: false`). Parameters with
requires_grad=False are left alone. For big models on small machines there is lean_adamw.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from leveret.errors import CheckpointError
from leveret.kernels.updates import collect_
from leveret.trainer.config import TrainingConfig
from leveret.trainer.muon import muon_

_ALIGNMENT = 64  # elements: every view starts on a cache line in bf16 and in fp32


def is_decayed(parameter: nn.Parameter, *, name: str = "", embeddings: bool = True) -> bool:
    """Whether weight decay applies: matrices yes, norm gains and biases no, the embedding if `embeddings`."""
    return parameter.ndim >= 2 and (embeddings or "embed_tokens" not in name)


def is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon may update it: a matrix inside a layer, which maps hidden states to hidden states."""
    return parameter.ndim == 2 and "layers." in name


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one parameter lives in the flat buffers."""

    name: str
    parameter: nn.Parameter
    start: int
    """First element in the flat buffers."""

    def view(self, flat: Tensor, *, first: int = 0) -> Tensor:
        """This parameter's piece of `flat`, which begins at element `first`, in the parameter's shape."""
        start = self.start - first
        return flat[start : start + self.parameter.numel()].view(self.parameter.shape)


def places_of(slots: Sequence[Slot]) -> dict[str, list[int]]:
    """Name -> [start, *shape] of every trained parameter, to see that a checkpoint fits a model."""
    return {slot.name: [slot.start, *slot.parameter.shape] for slot in slots}


def refuse_other_places(saved: Mapping[str, list[int]], mine: Mapping[str, list[int]]) -> None:
    """CheckpointError when a checkpoint's `places_of` are not this model's and optimizer's."""
    if saved == mine:
        return
    names = sorted(name for name in {*saved, *mine} if saved.get(name) != mine.get(name))
    raise CheckpointError(
        f"the checkpoint is of another model or optimizer: {len(names)} parameters differ, first {names[0]} "
        f"(checkpoint {saved.get(names[0])}, model {mine.get(names[0])}: start, shape)"
    )


def last_of(saved: Tensor, size: int) -> Tensor:
    """The last numbers of a flat tensor: older checkpoints begin `exp_avg_sq` with zeros for Muon's matrices."""
    return saved[saved.numel() - size :]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which parameter lies where: Muon's matrices first, then what is decayed, then the rest."""

    slots: list[Slot]
    muon_size: int
    decayed_size: int
    """Where the last decayed parameter ends."""
    size: int


def lay_out(model: nn.Module, config: TrainingConfig) -> Layout:
    """The places of the trainable parameters; they depend on names and shapes alone, not on the number of processes."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    takes_muon = is_inner_matrix if config.optimizer == "muon" else lambda name, parameter: False
    decayed = {name: is_decayed(p, name=name, embeddings=config.decay_embeddings) for name, p in trainable}
    slots: list[Slot] = []
    size = muon_size = decayed_size = 0
    for name, parameter in sorted(trainable, key=lambda item: (not takes_muon(*item), not decayed[item[0]])):  # stable
        slots.append(Slot(name=name, parameter=parameter, start=size))
        size += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        decayed_size = size if decayed[name] else decayed_size
        muon_size = size if takes_muon(name, parameter) else muon_size
    return Layout(slots=slots, muon_size=muon_size, decayed_size=decayed_size, size=size)


class AdamW:
    """The optimizer of one model. Building it moves the model's trainable parameters into one buffer of `dtype`.

    Until `close`, each backward pass adds to `gradients` and leaves `parameter.grad` None. sum_over_processes: where
    several processes hold whole models, replaces a tensor by its sum over all of them.
    """

    updates_in_backward = False

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        *,
        dtype: torch.dtype,
        sum_over_processes: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.config = config
        layout = lay_out(model, config)
        self.slots, size = layout.slots, layout.size
        self.muon_size, self.decayed_size = layout.muon_size, layout.decayed_size
        matrices: dict[tuple[int, int], list[int]] = {}
        for slot in self.slots:
            if slot.start < self.muon_size:
                matrices.setdefault((slot.parameter.shape[0], slot.parameter.shape[1]), []).append(slot.start)
        self._matrices = {shape: torch.tensor(starts) for shape, starts in matrices.items()}
        self._sum_over_processes = sum_over_processes
        device = self.slots[0].parameter.device
        self.masters = torch.zeros(size, dtype=torch.float32, device=device)
        self.weights = self.masters if dtype == torch.float32 else torch.zeros(size, dtype=dtype, device=device)
        self.gradients, self.exp_avg = torch.zeros_like(self.masters), torch.zeros_like(self.masters)
        self.exp_avg_sq = torch.zeros_like(self.masters[self.muon_size :])
        self.updates = 0
        self._filled = [False] * len(self.slots)
        for slot in self.slots:
            slot.view(self.masters).copy_(slot.parameter.detach())
            slot.parameter.data = slot.view(self.weights)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        self._push()
        self._hooks = [
            slot.parameter.register_post_accumulate_grad_hook(self._collector(index, slot))  # type: ignore[no-untyped-call]
            for index, slot in enumerate(self.slots)
        ]

    def start_step(self, *, learning_rate: float | None = None) -> None:
        """Forget the gradients of the step before. The learning rate is for optimizers that update in backward."""
        self._filled = [False] * len(self.slots)

    def gradient_norm(self) -> Tensor:
        """The length of the gradient of the whole model (before clipping), a scalar tensor."""
        for slot, filled in zip(self.slots, self._filled, strict=True):
            if not filled:  # no token of this step reached it (an expert nobody chose)
                slot.view(self.gradients).zero_()
        if self._sum_over_processes is not None:
            self._sum_over_processes(self.gradients)
        norm: Tensor = torch.linalg.vector_norm(self.gradients)
        return norm

    @torch.no_grad()
    def update(self, *, learning_rate: float, gradient_norm: float) -> None:
        """One AdamW update from `gradients`, clipped to `max_grad_norm` given their norm."""
        self.updates += 1
        limit = self.config.max_grad_norm
        clip = None if limit is None or gradient_norm <= limit else (gradient_norm + 1e-6) / limit
        rounded = None if self.weights is self.masters else self.weights
        for shape, starts in self._matrices.items():
            muon_(
                self.masters, rounded, self.gradients, self.exp_avg, starts, shape, factor=1.0 / (clip or 1.0),
                lr=learning_rate * self.config.matrix_learning_rate_ratio, weight_decay=self.config.weight_decay,
            )  # fmt: skip
        divide_by = None if clip is None else torch.tensor(clip, device=self.masters.device)
        # The kernel counts up itself before it uses the count.
        count = torch.tensor(float(self.updates - 1), device=self.masters.device)
        first = self.muon_size
        for part, decay in self._parts():
            squares = self.exp_avg_sq[part.start - first : part.stop - first]
            if not squares.numel():
                continue
            adamw(
                [self.masters[part]], [self.gradients[part]], [self.exp_avg[part]], [squares], [],
                [count.clone()], fused=True, grad_scale=divide_by, amsgrad=False, lr=learning_rate,
                beta1=self.config.betas[0], beta2=self.config.betas[1], eps=self.config.eps, weight_decay=decay,
                maximize=False,
            )  # fmt: skip
        self._push(first=first)

    def state(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds; with `updates` and `layout` they are the whole optimizer and the weights."""
        return {"masters": self.masters, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def layout(self) -> dict[str, list[int]]:
        """Name -> [start, *shape] of every trained parameter, to see that a checkpoint fits this model."""
        return places_of(self.slots)

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor], *, updates: int, layout: dict[str, list[int]]) -> None:
        """Take over a checkpoint's tensors and show them to the model. CheckpointError when the model differs."""
        refuse_other_places(layout, self.layout())
        for name, tensor in self.state().items():
            tensor.copy_(last_of(state[name], tensor.numel()))
        self.updates = updates
        self._push()

    def close(self) -> None:
        """Take the hooks off the model and free everything but its weights."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        empty = self.masters.new_empty(0)
        self.gradients = self.exp_avg = self.exp_avg_sq = empty

    def _parts(self) -> list[tuple[slice, float]]:
        decayed = slice(self.muon_size, self.decayed_size)
        return [(decayed, self.config.weight_decay), (slice(self.decayed_size, self.masters.numel()), 0.0)]

    def _push(self, *, first: int = 0) -> None:
        """Show the masters from `first` on to the model, rounded."""
        if self.weights is not self.masters:
            self.weights[first:].copy_(self.masters[first:])

    def _collector(self, index: int, slot: Slot) -> Callable[[Tensor], None]:
        target = slot.view(self.gradients)

        def collect(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            collect_(target, gradient, adds=self._filled[index])
            self._filled[index] = True
            parameter.grad = None

        return collect


def plain_adamw_(
    weight: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
    *, step: int, learning_rate: float, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """The update above written out, in place, for one tensor; `step` counts from 1. The twin of the fused kernel."""
    weight.mul_(1 - learning_rate * weight_decay)
    exp_avg.lerp_(gradient, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    denominator = exp_avg_sq.sqrt().div_(math.sqrt(1 - betas[1] ** step)).add_(eps)
    weight.addcdiv_(exp_avg, denominator, value=-learning_rate / (1 - betas[0] ** step))
