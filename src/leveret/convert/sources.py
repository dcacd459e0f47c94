"""What users bring, opened: a model directory, one tensor file with a config.json, or a GGUF file."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leveret.convert.config import ConvertConfig
from leveret.errors import ConfigError
from leveret.hub import resolve_whole_model
from leveret.model.families import family_for
from leveret.paths import atomic_write
from leveret.weights.bin_file import BIN_SUFFIXES
from leveret.weights.companions import copy_companions
from leveret.weights.gguf_file import open_gguf
from leveret.weights.gguf_read import GgufTensors, carried_config, restore_companions
from leveret.weights.load import read_config
from leveret.weights.model_tensors import FolderTensors, ModelTensors
from leveret.weights.safetensors import WeightFiles, one_file, read_json
from leveret.weights.save import generation_text

TENSOR_SUFFIXES = (*BIN_SUFFIXES, ".safetensors")


@dataclass(kw_only=True)
class Source:
    """One model, ready to be read."""

    path: Path
    name: str
    kind: str
    """`.bin`, `.safetensors`, `.gguf`."""
    tensors: ModelTensors
    config_values: dict[str, Any]
    """What stands in its config.json, or would."""
    files: dict[str, int]
    """Its tensor files and their sizes."""
    stored_as: dict[str, int]
    """Type -> tensors in it."""
    ignored: list[str] = field(default_factory=list)
    """Tensors of the files that no model needs."""
    write_companions: Callable[[Path], None]
    notes: list[str] = field(default_factory=list)
    """What the user should know."""


@contextlib.contextmanager
def open_source(config: ConvertConfig) -> Iterator[Source]:
    """Open what `model` names; ConfigError, HubError or WeightsError when that is not a model."""
    path = Path(config.model).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        yield _gguf(path)
        return
    files = None
    if path.is_file():
        if path.suffix not in TENSOR_SUFFIXES:
            raise ConfigError(f"{path} is no tensor file", hint=f"known are .gguf, {', '.join(TENSOR_SUFFIXES)}")
        files, folder = one_file(path), path.parent
    else:
        path = folder = resolve_whole_model(config.model, purpose="converting")
    place = config.model_config_file or folder / "config.json"
    if not place.is_file():
        raise ConfigError(f"{place} is missing, which says what the tensors of {path} are",
                          hint="name it: model_config_file=...")  # fmt: skip
    with _folder(config, path, folder, place, files) as source:
        yield source


@contextlib.contextmanager
def _folder(
    config: ConvertConfig, path: Path, folder: Path, place: Path, files: WeightFiles | None
) -> Iterator[Source]:
    values = read_json(place)
    if values.get("quantization_config"):
        raise ConfigError(f"{path} is quantized; converting would not make its numbers whole again",
                          hint="take the model it was made of")  # fmt: skip
    with FolderTensors(folder, read_config(place), files) as tensors:
        stored = tensors.reader.tensors
        names = sorted({entry.file for entry in stored.values()})

        def companions(target: Path) -> None:
            copy_companions(folder, target)

        notes = []
        if tensors.ignored:
            notes.append(f"{len(tensors.ignored)} tensors that no model needs are left out: {tensors.ignored[0]} ...")
        yield Source(
            path=path,
            name=config.model,
            kind=Path(names[0]).suffix,
            tensors=tensors,
            config_values=values,
            files={name: (folder / name).stat().st_size for name in names},
            stored_as=dict(Counter(str(entry.dtype).removeprefix("torch.") for entry in stored.values())),
            ignored=tensors.ignored,
            write_companions=companions,
            notes=notes,
        )


def _gguf(path: Path) -> Source:
    file = open_gguf(path)
    tensors = GgufTensors(file)
    config = tensors.config
    notes: list[str] = []

    def companions(target: Path) -> None:
        notes.extend(restore_companions(file, target))
        if not (target / "generation_config.json").is_file():
            atomic_write(target / "generation_config.json", generation_text(config))

    return Source(
        path=path,
        name=path.name,
        kind=".gguf",
        tensors=tensors,
        config_values=carried_config(file) or family_for(config.family).config_to_hf(config),
        files={path.name: path.stat().st_size},
        stored_as=dict(Counter(file.type_of(name) for name in file.tensors)),
        write_companions=companions,
        notes=notes,
    )
