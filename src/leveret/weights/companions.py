"""The files beside the weights that make them a model one can talk to: tokenizer, template, sampling, tools."""

from __future__ import annotations

import shutil
from pathlib import Path

PATTERNS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
    "generation_config.json", "tools.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""Their names. No Python file is among them: a model's folder brings data, not code."""


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy them; returns their names."""
    names = sorted({file.name for pattern in PATTERNS for file in source.glob(pattern) if file.is_file()})
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names
