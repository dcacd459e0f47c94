"""The one door to optional packages: import one, or say which pip command brings it."""

from __future__ import annotations

import importlib
from types import ModuleType

from leveret.errors import MissingExtra


def require(module: str, *, extra: str | None, purpose: str) -> ModuleType:
    """Import `module`, or raise MissingExtra naming what needs it and the pip command that brings it: the one of the
    `extra` that has it, or None for the package alone.

    An installed package that fails to import for another reason keeps its own error.
    """
    root = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        hint = f"pip install {root}" if extra is None else f'pip install "leveret[{extra}]"'
        raise MissingExtra(f"{purpose} needs the package '{root}', which is not installed", hint=hint) from None
