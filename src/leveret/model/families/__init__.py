"""The model families: one table a file, found here by `model_type`."""

from __future__ import annotations

from leveret.config import suggest
from leveret.errors import ConfigError
from leveret.model.families import aquila, lingowhale, llama, mistral, mixtral
from leveret.model.families.family import Family

FAMILIES: tuple[Family, ...] = (mistral.FAMILY, llama.FAMILY, aquila.FAMILY, mixtral.FAMILY, lingowhale.FAMILY)
"""Every family that can be loaded; docs/contributing/model_family.md says how to add one."""


def family_for(model_type: str) -> Family:
    """The family of this `model_type` (config.json) or `ModelConfig.family`; ConfigError lists the known ones."""
    for family in FAMILIES:
        if family.name == model_type:
            return family
    known = [family.name for family in FAMILIES]
    near = suggest(model_type, known)
    raise ConfigError(
        f"model_type {model_type!r} is not a known family; known are {', '.join(known)}",
        hint=f"did you mean {near}?" if near else "docs/contributing/model_family.md says how to add one",
    )
