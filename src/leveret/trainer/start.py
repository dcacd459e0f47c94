"""The model a run starts from, looked at before any text is read: from some no run may begin, or its work is lost."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor

from leveret.errors import ConfigError, WeightsError
from leveret.hub import is_quantized
from leveret.kernels.merging import all_finite
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.trainer.config import TrainingConfig
from leveret.trainer.outcome import MODEL
from leveret.weights.load import load_model, read_config
from leveret.weights.placing import file_name
from leveret.weights.safetensors import name_some

PART = 1 << 22
"""Values that are looked at in one go."""


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


def load_start(start: Path, *, dtype: str | None) -> Decoder:
    """The model in the folder `start`; WeightsError names tensors with a NaN or an infinity, which every loss would be
    too, in whatever rows and at whatever learning rate."""
    model = load_model(start, dtype=dtype)
    family = family_for(model.config.family)
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    if wrong := {file_name(family, name) for name, tensor in tensors if not _is_finite(tensor)}:
        raise WeightsError(
            f"{start} cannot be trained on: {len(wrong)} of its tensors hold values that are infinite or no numbers: "
            f"{name_some(wrong)}",
            hint="the file is damaged, or the training that wrote it had failed",
        )
    return model


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or all(
        all_finite(part) for part in torch.split(tensor.detach().flatten(), PART)
    )
