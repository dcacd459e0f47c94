"""Loading a form by its reference (references.py), in the number format it is stored in."""

from __future__ import annotations

from pathlib import Path

from leveret.certify.by_leveret import from_checkpoint, from_directory, from_gguf, newest_checkpoint
from leveret.certify.by_llama_cpp import from_llama_cpp
from leveret.certify.by_transformers import from_peft, from_transformers
from leveret.certify.form import Form
from leveret.certify.references import (
    LLAMA_CPP_PREFIX,
    PEFT_PREFIX,
    TRANSFORMERS_PREFIX,
    split_adapter,
    split_reference,
)
from leveret.errors import ConfigError
from leveret.hub import is_adapter, resolve_model
from leveret.model.families import FAMILIES
from leveret.weights.safetensors import read_json

CUSTOM_CODE_FAMILIES = ("aquila", "lingowhale")
"""Families that transformers does not bring itself; their releases ship code, which is not run here."""


def load_form(reference: str) -> Form:
    """Load a form by its reference; a LeveretError names what is wrong with it."""
    prefix, path = split_reference(reference)
    if prefix == LLAMA_CPP_PREFIX:
        return from_llama_cpp(reference, _file(path))
    if prefix == "" and path.endswith(".gguf"):
        return from_gguf(reference, _file(path))
    model, adapter = split_adapter(path)
    if prefix == PEFT_PREFIX:
        return _by_peft(reference, model, adapter)
    if prefix == "" and adapter is None and (checkpoint := newest_checkpoint(Path(path))) is not None:
        return from_checkpoint(reference, checkpoint)
    directory = resolve_model(model)
    if prefix == TRANSFORMERS_PREFIX:
        if adapter is not None or is_adapter(directory):
            raise ConfigError(f"{reference} is an adapter, which peft reads", hint=f"write {PEFT_PREFIX}{path}")
        return from_transformers(reference, directory)
    return from_directory(reference, directory, None if adapter is None else resolve_model(adapter))


def transformers_can_read(reference: str) -> bool:
    """Whether transformers reads this directory with nothing else installed: not quantized, and of a family it has."""
    config = Path(reference) / "config.json"
    if not config.is_file():
        return False
    values = read_json(config)
    known = {family.name for family in FAMILIES} - set(CUSTOM_CODE_FAMILIES)
    return values.get("model_type") in known and not values.get("quantization_config")


def _by_peft(reference: str, model: str, adapter: str | None) -> Form:
    directory = resolve_model(model)
    if adapter is not None:
        return from_peft(reference, resolve_model(adapter), directory)
    if not is_adapter(directory):
        raise ConfigError(f"{directory} holds no adapter for peft to read")
    return from_peft(reference, directory)


def _file(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"there is no file {path}", hint="a GGUF file is named itself, not by its folder")
    return file
