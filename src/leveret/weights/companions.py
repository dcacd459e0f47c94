"""The files beside the weights that make them a model one can talk to: tokenizer, template, sampling, tools, licence.

Whatever makes a model directory of another one takes them along from here: a conversion, an export, a quantized or
merged model by `copy_companions`, an adapter that is merged by `copy_over`; training, which writes a tokenizer and a
template of its own, by `pass_on`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from leveret.paths import atomic_write
from leveret.weights.safetensors import read_json

GENERATION = "generation_config.json"
LICENCE = ("LICENSE*", "NOTICE*")
"""What a model's authors ask to be passed on with it, and with what is made of it."""

TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
)  # fmt: skip
"""What only means something together: ids, and the template that is written in them."""

OTHERS = (GENERATION, "tools.json", *LICENCE)
PATTERNS = (*TOKENIZER, *OTHERS)
"""All names. No Python file is among them: a model's folder brings data, not code."""

NOT_SAMPLING = ("transformers_version", "_from_model_config", "max_length")
"""Keys of generation_config.json that say who wrote it, or how long a sequence the model as it was could hold."""


def copy_companions(source: Path, target: Path, patterns: Sequence[str] = PATTERNS) -> list[str]:
    """Copy them; returns their names."""
    names = sorted({file.name for pattern in patterns for file in source.glob(pattern) if file.is_file()})
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names


def first_with(name: str, folders: Sequence[Path]) -> Path:
    """The first of the folders that has a file of this name; the last one where none has it."""
    return next((folder for folder in folders if (folder / name).is_file()), folders[-1])


def copy_over(folders: Sequence[Path], target: Path) -> None:
    """Of several folders, such as an adapter's and its model's, what a server of them would read: each from the first
    that has it, and a tokenizer whole."""
    copy_companions(first_with("tokenizer.json", folders), target, TOKENIZER)
    for folder in reversed(folders):
        copy_companions(folder, target, OTHERS)


def pass_on(start: Path, target: Path) -> None:
    """Give a trained model what the one it was trained from says beside its weights: licence, and how to sample.

    Of generation_config.json the token ids are the trained model's own, everything that it does not say is the start's.
    """
    copy_companions(start, target, LICENCE)
    said = read_json(start / GENERATION) if (start / GENERATION).is_file() else {}
    kept = {key: value for key, value in said.items() if not key.endswith("_token_id") and key not in NOT_SAMPLING}
    own = read_json(target / GENERATION) if (target / GENERATION).is_file() else {}
    if kept:
        atomic_write(target / GENERATION, json.dumps(kept | own, indent=2, ensure_ascii=False) + "\n")
