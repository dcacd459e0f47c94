"""References to forms, and loading them.

    PATH                 a model directory, read by Leveret; a quantized one too; or a hub name
    PATH                 a training checkpoint, or a folder of them: then the newest
    transformers:PATH    the same directory, read by transformers

Every form is loaded in the number format it is stored in.
"""

from __future__ import annotations

from pathlib import Path

from leveret.certify.by_leveret import from_checkpoint, from_directory, newest_checkpoint
from leveret.certify.by_transformers import from_transformers
from leveret.certify.form import Form
from leveret.hub import resolve_model
from leveret.model.families import FAMILIES
from leveret.weights.safetensors import read_json

TRANSFORMERS_PREFIX = "transformers:"

CUSTOM_CODE_FAMILIES = ("aquila", "lingowhale")
"""Families that transformers does not bring itself; their releases ship code, which is not run here."""


def load_form(reference: str) -> Form:
    """Load a form by its reference; a LeveretError names what is wrong with it."""
    if reference.startswith(TRANSFORMERS_PREFIX):
        return from_transformers(reference, resolve_model(reference.removeprefix(TRANSFORMERS_PREFIX)))
    if (checkpoint := newest_checkpoint(Path(reference))) is not None:
        return from_checkpoint(reference, checkpoint)
    return from_directory(reference, resolve_model(reference))


def transformers_can_read(reference: str) -> bool:
    """Whether transformers reads this directory with nothing else installed: not quantized, and of a family it has."""
    config = Path(reference) / "config.json"
    if not config.is_file():
        return False
    values = read_json(config)
    known = {family.name for family in FAMILIES} - set(CUSTOM_CODE_FAMILIES)
    return values.get("model_type") in known and not values.get("quantization_config")
