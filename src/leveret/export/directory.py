"""A directory that transformers, vLLM and text-generation-webui load without code of ours: written, mended, checked.

Two families exist only here. Both are Llama under another name, so they are written as Llama: LingoWhale's fused matrix
is cut into q, k and v, and Aquila's norm differs only in where it rounds, which in float32 is nowhere. What was mended
in the small files is told, one sentence each; what a check finds and nothing can mend is told as well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leveret.chat.template import template_for
from leveret.errors import TokenizerError, WeightsError
from leveret.export.checks import NATIVE, Finding, check_directory
from leveret.hub import is_quantized
from leveret.model.config import ModelConfig
from leveret.model.families import family_for
from leveret.paths import atomic_write
from leveret.tokenizer.files import Tokenizer
from leveret.weights.companions import copy_companions
from leveret.weights.gguf_tokenizer import without_generation
from leveret.weights.load import as_dtype, read_config
from leveret.weights.model_tensors import FolderTensors
from leveret.weights.rewrite import write_tensors
from leveret.weights.safetensors import find_weight_files, read_json
from leveret.weights.save import INDEX


@dataclass(kw_only=True)
class DirectoryReport:
    """What was written."""

    bytes: int
    mended: list[str] = field(default_factory=list)
    """One sentence for each thing that was changed on the way."""
    findings: list[Finding] = field(default_factory=list)


def write_directory(
    source: Path, target: Path, *, dtype: str | None = None, progress: Callable[[int, int], None] | None = None
) -> DirectoryReport:
    """Write the model of `source` into `target`, the draft of an `atomic_directory`, and check it there."""
    if not (source / "tokenizer.json").is_file():
        raise TokenizerError(f"there is no tokenizer.json in {source}, so other programs could not read text",
                             hint="copy it from the model's original folder")  # fmt: skip
    values, config = read_json(source / "config.json"), read_config(source)
    report = DirectoryReport(bytes=0)
    if is_quantized(source):
        report.bytes = _copy_weights(source, target, config)
    else:
        config, report.bytes = _write_weights(source, target, config, dtype, progress, report)
    copy_companions(source, target)
    _mend_config(target, values, config, dtype, report)
    tokenizer = Tokenizer.load(target)
    _mend_ids(target, tokenizer, report)
    _mend_tokenizer(target, tokenizer, config, report)
    report.findings = check_directory(target)
    return report


def _write_weights(
    source: Path,
    target: Path,
    config: ModelConfig,
    dtype: str | None,
    progress: Callable[[int, int], None] | None,
    report: DirectoryReport,
) -> tuple[ModelConfig, int]:
    family = config.family if config.family in NATIVE else "llama"
    with FolderTensors(source) as tensors:
        written = write_tensors(tensors, family_for(family), target, dtype=as_dtype(dtype), progress=progress)
    if family != config.family:
        rounding = ", which rounds once more in each norm outside of float32" if config.norm_scales_in_float32 else ""
        report.mended.append(
            f"{config.family} is written as llama{rounding}, as other programs have no {config.family}"
        )
    if dtype is not None:
        report.mended.append(f"{dtype}: {written.line()}")
    return replace(config, family=family, norm_scales_in_float32=False), written.bytes


def _copy_weights(source: Path, target: Path, config: ModelConfig) -> int:
    """Quantized matrices go as they are: the layouts are those that other programs read."""
    if config.family not in NATIVE:
        raise WeightsError(f"a quantized {config.family} model cannot be written as one that other programs know",
                           hint="export the model it was made of, and quantize the result")  # fmt: skip
    files = sorted(set(find_weight_files(source).file_of.values()))
    if any(not file.endswith(".safetensors") for file in files):
        raise WeightsError(f"{source} is quantized and not in safetensors", hint="quantize the model again here")
    for file in [*files, *([INDEX] if (source / INDEX).is_file() else [])]:
        shutil.copyfile(source / file, target / file)
    return sum((target / file).stat().st_size for file in files)


def _mend_config(
    target: Path, before: dict[str, Any], config: ModelConfig, dtype: str | None, report: DirectoryReport
) -> None:
    values = dict(before)
    if values.pop("auto_map", None) is not None:
        report.mended.append("config.json no longer names code to run (auto_map)")
    if before.get("model_type") != config.family or before.get("architectures") != [NATIVE[config.family]]:
        values |= {"model_type": config.family, "architectures": [NATIVE[config.family]]}
        report.mended.append(f"config.json says {NATIVE[config.family]}")
    stored = dtype or _stored_dtype(target, before)
    for key in [key for key in ("dtype", "torch_dtype") if key in values] or ["torch_dtype"]:
        values[key] = stored
    _write_json(target / "config.json", values)


def _stored_dtype(target: Path, before: dict[str, Any]) -> str:
    """Of the embedding, which is never quantized."""
    from leveret.weights.reader import WeightReader

    tensors = WeightReader(target).tensors
    found = next((stored for name, stored in tensors.items() if name.endswith("embed_tokens.weight")), None)
    return str(found.dtype).removeprefix("torch.") if found else str(before.get("torch_dtype", "float32"))


def _mend_ids(target: Path, tokenizer: Tokenizer, report: DirectoryReport) -> None:
    """Every program stops where a reply ends: the ids of both configs are the same, and hold the template's stop."""
    values = read_json(target / "config.json")
    place = target / "generation_config.json"
    said = read_json(place) if place.is_file() else {}
    template = None if tokenizer.chat_template is None else template_for(tokenizer)
    stops = () if template is None else template.stop_ids(tokenizer)
    ends = [*_ids(said.get("eos_token_id")), *_ids(values.get("eos_token_id"))]
    ends += [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ids = [index for index in dict.fromkeys([*ends, *stops]) if tokenizer.is_special(index)]
    if ordinary := sorted({index for index in ends if not tokenizer.is_special(index)}):
        report.mended.append(f"eos_token_id {ordinary}: ordinary tokens, at which a text would have ended anywhere")
    eos = ids[0] if len(ids) == 1 else ids or None
    wanted = {"eos_token_id": eos}
    for key, index in (("bos_token_id", tokenizer.bos_id), ("pad_token_id", tokenizer.pad_id)):
        wanted[key] = index if index is not None else values.get(key)
    for name, content in (("config.json", values), ("generation_config.json", said)):
        changed = {key: index for key, index in wanted.items() if index is not None and content.get(key) != index}
        if changed:
            _write_json(target / name, content | changed)
            told = ", ".join(f"{key} {content.get(key)} -> {index}" for key, index in changed.items())
            report.mended.append(f"{name}: {told}")
    if not place.is_file():
        _write_json(place, {})


def _mend_tokenizer(target: Path, tokenizer: Tokenizer, config: ModelConfig, report: DirectoryReport) -> None:
    place = target / "tokenizer_config.json"
    settings = read_json(place) if place.is_file() else {}
    before = dict(settings)
    settings.pop("auto_map", None)
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    settings["model_max_length"] = config.context_tokens
    if (source := tokenizer.chat_template) is not None:
        plain = without_generation(source)
        if plain != source:
            report.mended.append("{% generation %}, which marks what is trained, is out of the template")
        settings["chat_template"] = plain
        atomic_write(target / "chat_template.jinja", plain)
    changed = sorted(key for key in settings.keys() | before.keys() if settings.get(key) != before.get(key))
    if changed:
        _write_json(place, settings)
        report.mended.append(f"tokenizer_config.json: {', '.join(changed)}")


def _ids(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
