"""Opening a backend by its name, for a model at a path."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from leveret.engine.backend import Backend
from leveret.engine.backends.names import LLAMA_CPP, TRANSFORMERS, is_url
from leveret.engine.prompting import Parts, find_parts
from leveret.errors import ConfigError
from leveret.hub import name_of, resolve_model
from leveret.tokenizer.files import Tokenizer
from leveret.weights.gguf_file import open_gguf
from leveret.weights.gguf_read import restore_companions
from leveret.weights.load import read_config


@dataclass(frozen=True, kw_only=True)
class OpenedParts(Parts):
    """What a TextModel is made of."""

    model: Backend
    name: str


def open_parts(path: str | Path, backend: str, *, dtype: str | torch.dtype | None, device: str) -> OpenedParts:
    """A model at `path`, a directory, a name or a GGUF file, to be run by `backend`, which is not our own engine."""
    model = Path(path) if Path(path).is_file() else resolve_model(str(path))
    parts = _parts_of(model)
    opened = open_backend(backend, model, parts.tokenizer, dtype=dtype, device=device)
    return OpenedParts(**vars(parts), model=opened, name=name_of(model))


def _parts_of(model: Path) -> Parts:
    """Of a directory, or as they are written in a GGUF file; ConfigError when its tokenizer cannot be rebuilt."""
    if model.is_dir():
        return find_parts((model,))
    with tempfile.TemporaryDirectory() as folder:
        restore_companions(open_gguf(model), Path(folder))
        if not (Path(folder) / "tokenizer.json").is_file():
            raise ConfigError(
                f"the tokenizer in {model} is one that only llama.cpp reads",
                hint="name the model's directory, and as backend the URL of llama.cpp's own server",
            )
        return find_parts((Path(folder),))


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
    return read_config(model).max_position_embeddings if (model / "config.json").is_file() else None
