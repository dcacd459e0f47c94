"""Validation during training: the loss on held-out rows, and what it means in bits per byte of text.

Loss per token cannot be compared between tokenizers; bits per byte can:

    bits per byte = (summed loss in nats / ln 2) / (UTF-8 bytes of the predicted tokens)

The bytes of a token are its exact bytes, not the length of its decoded text (a token may be part of a Chinese
character, and decodes to a replacement sign of another length). Special tokens count no bytes. Several processes share
the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from leveret.errors import DataError
from leveret.kernels.cross_entropy import IGNORED
from leveret.model.decoder import Decoder
from leveret.trainer.batches import Batch, batch_of, nothing_like
from leveret.trainer.config import TrainingConfig
from leveret.trainer.objective import summed_loss
from leveret.trainer.world import World

if TYPE_CHECKING:
    from leveret.data.packing import PackedRows
    from leveret.tokenizer.files import Tokenizer


class Validation:
    """Measures a model on held-out rows: `{"validation_loss": nats a token, "bits_per_byte": ...}` when called."""

    def __init__(
        self,
        model: Decoder,
        sources: Sequence[PackedRows],
        config: TrainingConfig,
        tokenizer: Tokenizer,
        world: World | None = None,
    ) -> None:
        self.model = model
        self.world = world or World(torch.device("cpu"))
        self.micro_batch_rows = config.micro_batch_rows
        rows = [(source, row) for source in sources for row in range(len(source))]
        if not rows:
            raise DataError(
                "the held-out data has no row to measure", hint="put text into it, or leave `validation` out"
            )
        # Evenly over all of them, so that a limit does not mean the first file only.
        chosen = np.linspace(0, len(rows) - 1, min(config.evaluate_rows, len(rows))).round().astype(int)
        self.rows = [rows[place] for place in chosen]
        self.token_bytes = byte_lengths(tokenizer)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Measure now. The model's mode and the random state are left as they were."""
        was_training = self.model.training
        self.model.eval()
        loss, tokens, text_bytes = 0.0, 0, 0
        for batch in self._batches():
            loss += float(summed_loss(self.model, batch))
            tokens += batch.trained_tokens
            targets = batch.targets[batch.targets != IGNORED].numpy()
            text_bytes += int(self.token_bytes[targets].sum())
        self.model.train(was_training)
        loss, all_tokens, all_bytes = self.world.sum(loss, tokens, text_bytes)
        return {
            "validation_loss": loss / max(all_tokens, 1),
            "bits_per_byte": loss / math.log(2) / max(all_bytes, 1),
        }

    def _batches(self) -> Iterator[Batch]:
        """The rows of this process; all processes have equally many batches, for they meet in each."""
        size, rank, num_ranks = self.micro_batch_rows, self.world.rank, self.world.size
        rows = self.rows[len(self.rows) * rank // num_ranks : len(self.rows) * (rank + 1) // num_ranks]
        for start in range(0, -(-len(self.rows) // num_ranks), size):
            part = rows[start : start + size] or self.rows[:1]
            batch = batch_of([source.row(row) for source, row in part], [str(row) for _, row in part])
            yield batch if start < len(rows) else nothing_like(batch)


def byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) int64: the bytes each id stands for; 0 for special tokens."""
    lengths = [len(tokenizer.bytes_of(token, skip_special=True)) for token in range(tokenizer.vocab_size)]
    return np.array(lengths, dtype=np.int64)
