"""Opening a backend by its name, for a model at a path."""

from __future__ import annotations

from pathlib import Path

import torch

from leveret.engine.backend import Backend
from leveret.engine.backends.names import LLAMA_CPP, TRANSFORMERS, is_url
from leveret.errors import ConfigError
from leveret.tokenizer.files import Tokenizer


def open_backend(
    name: str, model: Path, tokenizer: Tokenizer, *, dtype: str | torch.dtype | None = None, device: str = "cpu"
) -> Backend:
    """The backend `name` (names.py; not our own engine) for the model at `model`, a directory or a GGUF file.

    Raises ConfigError when the two do not go together, MissingExtra, WeightsError, or RequestError (a server).
    """
    if is_url(name):
        from leveret.engine.backends.by_server import ServerBackend
        from leveret.engine.backends.completions import Completions

        return ServerBackend(Completions(name), tokenizer, context_tokens=_context_tokens(model))
    from leveret.engine.backends.sequences import SequencesBackend

    if name == TRANSFORMERS:
        from leveret.engine.backends.by_transformers import TransformersSequences

        if model.is_file():
            raise ConfigError(
                f"the backend transformers reads model directories, and {model} is a file",
                hint=f"leveret convert {model}, or backend=llama.cpp",
            )
        return SequencesBackend(TransformersSequences(model, dtype=dtype, device=device))
    assert name == LLAMA_CPP, name
    from leveret.engine.backends.by_llama_cpp import LlamaCppSequences

    if not model.is_file():
        raise ConfigError(
            f"the backend llama.cpp reads GGUF files, and {model} is a directory",
            hint=f"write one: leveret export {model} to=gguf",
        )
    return SequencesBackend(LlamaCppSequences(model))


def _context_tokens(model: Path) -> int | None:
    from leveret.weights.load import read_config

    return read_config(model).max_position_embeddings if (model / "config.json").is_file() else None
