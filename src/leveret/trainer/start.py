"""The model a run starts from, looked at before any text is read: from some no run may begin, or its work is lost."""

from __future__ import annotations

from pathlib import Path

from leveret.errors import ConfigError
from leveret.hub import is_quantized
from leveret.trainer.config import TrainingConfig
from leveret.trainer.outcome import MODEL
from leveret.weights.load import read_config


def check_start(start: Path, output: Path, training: TrainingConfig, *, beside: bool = False) -> None:
    """ConfigError when the model in the folder `start` cannot be trained as `training` says, into `output`.

    beside: an adapter is trained, and the model itself stays as it is.
    """
    if start.resolve() == (output / MODEL).resolve():
        raise ConfigError(
            f"the run would start from its own result: {start} is what it writes, and the start would be lost",
            hint="give it another folder with output=...",
        )
    if not beside and is_quantized(start):
        raise ConfigError(
            f"{start} is quantized; only an adapter can be trained on it",
            hint="fine-tune with adapter={}, or start from the model it was quantized from",
        )
    longest = read_config(start).max_position_embeddings
    if training.sequence_length > longest:
        raise ConfigError(
            f"training.sequence_length is {training.sequence_length}, but the model {start} is meant for at most "
            f"{longest} tokens",
            hint=f"training.sequence_length={longest}, or a model that reads more",
        )
