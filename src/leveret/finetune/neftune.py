"""NEFTune: noise on the embeddings while training, so that a model learns answers and not wordings.

Jain et al. 2023 (arXiv 2310.05914): to the embeddings (L, d) of a document of L tokens is added

    noise ~ uniform(-1, 1) * alpha / sqrt(L * d)

so that its length is about alpha / sqrt(3) however long the document. L is the document's own length: taking that of
the row it is packed or padded into, as is often done, gives short documents far too little. The numbers follow from
the step's seed and the row's key, so a resumed run draws the same, however its steps are cut into micro-batches and
shared by processes.

The decoder knows nothing of it: the noise is added in front of its first layer, only while this loss is taken with
gradients; measuring, serving and the saved weights never see any.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leveret.console import Console
from leveret.trainer.batches import Batch
from leveret.trainer.objective import CausalLoss
from leveret.trainer.world import World


class NoisyLoss:
    """A loss with noise on what its model reads: itself an objective of `optimizer_step`."""

    def __init__(self, loss: CausalLoss, alpha: float) -> None:
        self.loss = loss
        self.alpha = alpha
        self._seed: int | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """The summed loss of one micro-batch; with noise as long as gradients are taken."""
        if not torch.is_grad_enabled():
            return self.loss(batch)
        with self._noise_on(batch):
            return self.loss(batch)

    @contextlib.contextmanager
    def _noise_on(self, batch: Batch) -> Iterator[None]:
        """Within the block, the model reads `batch` with its noise."""
        first = self.loss.model.layers[0]

        def add_noise(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            x, *others = arguments
            seed = torch.initial_seed() if self._seed is None else self._seed
            noise = noise_for(batch, x.shape[-1], self.alpha, seed=seed)
            return (x + noise.to(x.device, x.dtype), *others)

        hook = first.register_forward_pre_hook(add_noise)
        try:
            yield
        finally:
            hook.remove()

    def start_step(self, batches: Sequence[Batch], world: World) -> None:
        """What the loss underneath does before a step; all processes draw by the seed of the first."""
        self._seed = world.agree(torch.initial_seed())
        self.loss.start_step(batches, world, around=self._noise_on)

    def record(self, world: World, console: Console) -> dict[str, Any]:
        """What the loss underneath has to say."""
        return self.loss.record(world, console)

    def progress(self) -> dict[str, str]:
        """What the loss underneath shows."""
        return self.loss.progress()


def noise_for(batch: Batch, hidden_size: int, alpha: float, *, seed: int) -> Tensor:
    """The noise of a batch, (B, T, H) float32: by the seed and each row's key, and none on padding."""
    rows, length = batch.document_ids.shape
    noise = torch.zeros(rows, length, hidden_size)
    for row, key in enumerate(batch.keys):  # a batch that fills up a step has none, and trains nothing
        digest = hashlib.sha256(f"neftune:{seed}:{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        drawn = torch.rand(length, hidden_size, generator=generator) * 2 - 1
        noise[row] = drawn * _scale(batch.document_ids[row].cpu(), alpha / math.sqrt(hidden_size)).unsqueeze(1)
    return noise


def _scale(document_ids: Tensor, factor: float) -> Tensor:
    """(T,) factor / sqrt(L) of each place's document; 0 for padding."""
    real = document_ids >= 0
    lengths = torch.bincount(document_ids[real], minlength=1)
    scale = torch.zeros(len(document_ids))
    scale[real] = factor / lengths[document_ids[real]].float().sqrt()
    return scale
