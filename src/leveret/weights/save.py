"""A Decoder -> a directory that transformers, vLLM and llama.cpp load: config.json, generation_config.json, tensors.

A crash never leaves a model that loads and is half old, half new. All tensors are first written under hidden names and
flushed; then config.json, without which nothing loads a directory, is taken away, the files are renamed, and the new
config.json comes last. Other files of the directory (tokenizer, tools, card) are left alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.paths import atomic_write, permit_as_new
from leveret.precision.swap import is_quantized_linear
from leveret.weights.placing import fuse, stacked

SHARD_BYTES = 5 * 10**9
"""Size of a shard in bytes, as transformers has it."""

INDEX = "model.safetensors.index.json"


def save_model(
    model: Decoder,
    path: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    generation: Mapping[str, Any] | None = None,
    quantization_config: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` in the dtype it has.

    shard_bytes: a file is closed before it grows beyond this.
    generation: keys of generation_config.json beside the token ids.
    quantization_config: of a model whose Linears were swapped (`to_dict()` of GptqStorage or Nf4Storage).
    """
    quantized = any(is_quantized_linear(module) for module in model.modules())
    assert quantized == (quantization_config is not None), "a quantized model is saved with its quantization_config"
    family = family_for(model.config.family)
    family.check(model.config)
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    drafts = _write_drafts(fuse(model, family), directory, shard_bytes)
    config = family.config_to_hf(model.config) | {"torch_dtype": str(model.norm.weight.dtype)[6:]}
    if quantization_config is not None:
        config["quantization_config"] = dict(quantization_config)
    (directory / "config.json").unlink(missing_ok=True)
    _remove_old_weights(directory)
    for draft, name in drafts.items():
        os.replace(draft, directory / name)
    save_generation(model, directory, generation)
    atomic_write(directory / "config.json", _json(config))


def save_generation(model: Decoder, directory: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write generation_config.json alone: the model's token ids, and `extra` keys."""
    atomic_write(directory / "generation_config.json", generation_text(model.config, extra))


def generation_text(config: ModelConfig, extra: Mapping[str, Any] | None = None) -> str:
    """The content of generation_config.json: the token ids, and `extra` keys."""
    eos = config.eos_token_id
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
    }
    return _json({name: value for name, value in ids.items() if value is not None} | dict(extra or {}))


def _write_drafts(grouped: dict[str, list[Tensor]], directory: Path, shard_bytes: int) -> dict[Path, str]:
    """Write all tensors, and the index if there are several files, under hidden names; returns draft -> final name."""
    for leftover in directory.glob(".model*.draft"):
        leftover.unlink()
    shards = _shards(grouped, shard_bytes)
    drafts: dict[Path, str] = {}
    file_of: dict[str, str] = {}
    total_bytes = 0
    for number, names in enumerate(shards, start=1):
        final = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: stacked(name, grouped[name]) for name in names}
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        draft = directory / f".{final}.draft"
        _write_tensors(tensors, draft, directory / final)
        permit_as_new(draft)
        _flush(draft)
        drafts[draft] = final
        file_of |= dict.fromkeys(names, final)
    if len(shards) > 1:
        draft = directory / f".{INDEX}.draft"
        draft.write_text(_json({"metadata": {"total_size": total_bytes}, "weight_map": file_of}), encoding="utf-8")
        _flush(draft)
        drafts[draft] = INDEX
    return drafts


def _shards(grouped: dict[str, list[Tensor]], shard_bytes: int) -> list[list[str]]:
    """Names in order, cut into files; a tensor larger than a shard has a file to itself."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, parts in grouped.items():
        added = sum(part.nbytes for part in parts)
        if shards[-1] and size + added > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += added
    return shards


def _write_tensors(tensors: dict[str, Tensor], draft: Path, final: Path) -> None:
    """Write a file; what the system refuses (a full disk) is an OSError that names the file, as everywhere else."""
    try:
        save_file(tensors, draft, metadata={"format": "pt"})
    except SafetensorError as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(final)) from error


def _remove_old_weights(directory: Path) -> None:
    """A file of the model that was here before must not be taken for a part of this one."""
    for pattern in ("model*.safetensors", INDEX, "pytorch_model*.bin", "pytorch_model.bin.index.json"):
        for old in directory.glob(pattern):
            old.unlink()


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
