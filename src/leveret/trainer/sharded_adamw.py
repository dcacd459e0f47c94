"""AdamW (and Muon) where each process holds a share of every parameter: the optimizer under FSDP2.

FSDP2 (`torch.distributed.fsdp.fully_shard`, see parallel.py) cuts each parameter along its first dimension into equal
runs of rows, one a process; the last ones may be shorter or empty. The shares are fp32 and are the masters themselves:
a layer is rounded to bf16 when it is gathered, so the model computes with the same numbers as under adamw.py. Backward
leaves each process the summed gradient of its own share, in fp32. AdamW works entry by entry, so a process updates its
share with the same formula and needs nobody; a process of W keeps 16 / W bytes a parameter, and one layer at a time.

Two things need the others. The norm of the gradient: squares are summed over the shares. And Muon, whose update is of
a whole matrix: the shares of its momentum are gathered, every process makes the same matrix orthogonal, and takes its
rows.

A checkpoint is the same file as adamw.py's. The shares are gathered parameter by parameter into the flat layout of
`lay_out` in the memory of process 0; on resume each process reads its rows out of it. So a run goes on with any number
of processes, in any mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.optim.adamw import adamw

from leveret.kernels.orthogonal import orthogonalize_unit_
from leveret.trainer.adamw import Slot, last_of, lay_out, places_of, refuse_other_places
from leveret.trainer.config import TrainingConfig
from leveret.trainer.muon import MOMENTUM, update_size
from leveret.trainer.world import World


@dataclass(frozen=True, kw_only=True)
class Share:
    """What this process holds of one parameter."""

    slot: Slot
    parameter: DTensor
    takes_muon: bool
    exp_avg: Tensor
    exp_avg_sq: Tensor
    """Empty where Muon updates."""

    @property
    def weight(self) -> Tensor:
        """The rows of this process, fp32."""
        return self.parameter.to_local()

    @property
    def gradient(self) -> Tensor:
        """The summed gradient of these rows; zero where no token of any process reached them."""
        gradient = self.parameter.grad
        return torch.zeros_like(self.weight) if gradient is None else gradient.to_local()  # type: ignore[attr-defined]

    @property
    def first_row(self) -> int:
        """Where the rows begin in the whole parameter."""
        mesh, place = self.parameter.device_mesh, self._sharded_dimension
        rows = self.parameter.shape[0]
        return min(-(-rows // mesh.size(place)) * mesh.get_local_rank(place), rows)

    def rows_of(self, whole: Tensor) -> Tensor:
        """These rows of a tensor in the shape of the whole parameter."""
        return whole[self.first_row : self.first_row + self.weight.shape[0]]

    def whole(self, local: Tensor, device: torch.device) -> Tensor:
        """Gather the rows of all processes, of a tensor that goes with this parameter."""
        gathered: Tensor = DTensor.from_local(
            local.to(device), self.parameter.device_mesh, self.parameter.placements, run_check=False,
            shape=self.parameter.shape, stride=self.parameter.stride(),
        ).full_tensor()  # fmt: skip
        return gathered

    @property
    def _sharded_dimension(self) -> int:
        return next(i for i, how in enumerate(self.parameter.placements) if isinstance(how, Shard))


class ShardedAdamW:
    """The optimizer of one model that `parallel.sharded` has cut into shares."""

    updates_in_backward = False

    def __init__(self, model: nn.Module, config: TrainingConfig, world: World) -> None:
        self.config, self.world = config, world
        self.updates = 0
        self._fsdp_modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._layout = lay_out(model, config)
        self.shares: list[Share] = []
        for slot in self._layout.slots:
            parameter = slot.parameter
            assert isinstance(parameter, DTensor), f"{slot.name} is not sharded"
            takes_muon = slot.start < self._layout.muon_size
            first = torch.zeros_like(parameter.to_local()).detach()
            second = first.new_empty(0) if takes_muon else torch.zeros_like(first)
            self.shares.append(
                Share(slot=slot, parameter=parameter, takes_muon=takes_muon, exp_avg=first, exp_avg_sq=second)
            )

    def start_step(self, *, learning_rate: float) -> None:
        """Forget the gradients of the step before."""
        for share in self.shares:
            share.parameter.grad = None

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """The length of the gradient of the whole model (before clipping), a scalar tensor."""
        norms = [torch.linalg.vector_norm(share.gradient, dtype=torch.float64) for share in self.shares]
        mesh = self.shares[0].parameter.device_mesh
        copies = mesh.size() // mesh.size(mesh.ndim - 1)  # with hsdp, so many groups hold the same gradient
        (squares,) = self.world.sum(float(torch.stack([norm.cpu() for norm in norms]).square().sum()) / copies)
        return torch.tensor(squares, dtype=torch.float64).sqrt().float().to(self.world.device)

    @torch.no_grad()
    def update(self, *, learning_rate: float, gradient_norm: float) -> None:
        """One update from the gradients, clipped to `max_grad_norm` given their norm."""
        limit = self.config.max_grad_norm
        clip = None if limit is None or gradient_norm <= limit else (gradient_norm + 1e-6) / limit
        for share in self.shares:
            if share.takes_muon:
                self._update_matrix(share, 1.0 / (clip or 1.0), learning_rate)
        for shares, decay in self._groups():
            weights = [share.weight for share in shares]
            device = weights[0].device
            # The kernel counts up itself before it uses the count.
            counts = [torch.tensor(float(self.updates), device=device) for _ in shares]
            adamw(
                weights, [share.gradient for share in shares], [share.exp_avg for share in shares],
                [share.exp_avg_sq for share in shares], [], counts, fused=True, amsgrad=False, lr=learning_rate,
                grad_scale=None if clip is None else torch.tensor(clip, device=device),
                beta1=self.config.betas[0], beta2=self.config.betas[1], eps=self.config.eps, weight_decay=decay,
                maximize=False,
            )  # fmt: skip
        self.updates += 1
        self._forget_gathered()

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """The whole state in process 0, nothing in the others; all processes must ask for it together."""
        state: dict[str, Tensor] = {}
        for name in ("masters", "exp_avg", "exp_avg_sq"):
            flat = torch.zeros(self._layout.size - self._first(name) if self.world.is_main else 0)
            for share, local in self._tensors(name):
                whole = share.whole(local, self.world.device)
                if self.world.is_main:
                    share.slot.view(flat, first=self._first(name)).copy_(whole)
            if self.world.is_main:
                state[name] = flat
        return state

    def layout(self) -> dict[str, list[int]]:
        """Name -> [start, *shape] of every trained parameter, to see that a checkpoint fits this model."""
        return places_of(self._layout.slots)

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor], *, updates: int, layout: dict[str, list[int]]) -> None:
        """Take over these rows of a checkpoint's tensors. CheckpointError when the model differs."""
        refuse_other_places(layout, self.layout())
        self._forget_gathered()
        for name in ("masters", "exp_avg", "exp_avg_sq"):
            flat = last_of(state[name], self._layout.size - self._first(name))
            for share, local in self._tensors(name):
                local.copy_(share.rows_of(share.slot.view(flat, first=self._first(name))))
        self.updates = updates

    def close(self) -> None:
        """Free everything but the weights."""
        for share in self.shares:
            share.parameter.grad = None
        self.shares.clear()

    def _first(self, name: str) -> int:
        """Where a flat tensor of the state begins: there is no average of the squares of Muon's matrices."""
        return self._layout.muon_size if name == "exp_avg_sq" else 0

    def _tensors(self, name: str) -> Iterator[tuple[Share, Tensor]]:
        """The shares that have a tensor of this name, each with its own."""
        for share in self.shares:
            if share.slot.start >= self._first(name):
                yield share, share.weight if name == "masters" else getattr(share, name)

    def _forget_gathered(self) -> None:
        """After a pass without gradients the root keeps its gathered weights; they are old now."""
        for module in self._fsdp_modules:
            module.reshard()

    def _groups(self) -> Iterator[tuple[list[Share], float]]:
        """The shares that AdamW updates, with their weight decay; a process may hold no row of a small parameter."""
        own = [share for share in self.shares if not share.takes_muon and share.weight.numel()]
        for decayed, decay in ((True, self.config.weight_decay), (False, 0.0)):
            shares = [share for share in own if (share.slot.start < self._layout.decayed_size) == decayed]
            if shares:
                yield shares, decay

    def _update_matrix(self, share: Share, factor: float, learning_rate: float) -> None:
        gradient, momentum = share.gradient * factor, share.exp_avg
        momentum.mul_(MOMENTUM).add_(gradient)
        whole = share.whole(gradient.add_(momentum, alpha=MOMENTUM), self.world.device)  # (R, C)
        unit = (whole / (torch.linalg.vector_norm(whole) + 1e-7)).to(torch.bfloat16)
        step = share.rows_of(orthogonalize_unit_(unit.unsqueeze(0))[0]).to(share.weight)
        rate = learning_rate * self.config.matrix_learning_rate_ratio
        share.weight.mul_(1 - rate * self.config.weight_decay).sub_(step, alpha=rate * update_size(*whole.shape))
