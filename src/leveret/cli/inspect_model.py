"""What a model folder holds: config, parameters, tensors, tokenizer, template, tools, each of them if it is there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from leveret.cli.tensor_table import TensorEntry, by_dtype, in_bytes, table_rows, tensors_of_model
from leveret.console import Console
from leveret.errors import DataError, LeveretError

Facts = Iterator[tuple[str, object]]


def describe_model(folder: Path, console: Console, *, every_tensor: bool) -> dict[str, Any]:
    """Show tables; returns the figures that fit in a line. A part that cannot be read is reported in its row."""
    entries = tensors_of_model(folder)
    facts: list[tuple[str, object]] = []
    for part, describe in _PARTS:
        try:
            facts += describe(folder)
        except (LeveretError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            facts.append((part, f"cannot be read: {error}"))
    facts += _stored(folder, entries)
    console.table(f"model {folder}", ("what", "value"), [(name, _said(value)) for name, value in facts])
    if entries:
        rows = table_rows(entries, every_tensor=every_tensor)
        console.table("tensors", ("name", "dtype", "shape", "count", "bytes"), rows)
    return {name: value for name, value in facts if name in ("family", "parameters", "vocabulary", "tools")}


def describe_tokenizer(folder: Path, console: Console) -> dict[str, Any]:
    """A tokenizer on its own: its roles, its size, its special tokens and its template."""
    facts = [*_tokenizer(folder), *_template(folder)]
    console.table(f"tokenizer {folder}", ("what", "value"), [(name, _said(value)) for name, value in facts])
    return {"vocabulary": dict(facts)["vocabulary"]}


def describe_adapter(folder: Path, console: Console, *, every_tensor: bool) -> dict[str, Any]:
    """An adapter: its settings, the model it is for, and its tensors."""
    values = _read_object(folder / "adapter_config.json")
    entries = tensors_of_model(folder)
    told = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_dora", "use_rslora", "target_modules",
            "modules_to_save", "num_virtual_tokens")  # fmt: skip
    facts = [(name, _said(values[name])) for name in told if values.get(name) not in (None, False)]
    parameters = sum(math.prod(entry.shape) for entry in entries)
    facts += [("parameters", f"{parameters:,}"), ("tensors", f"{len(entries)} ({by_dtype(entries)})")]
    console.table(f"adapter {folder}", ("what", "value"), facts)
    rows = table_rows(entries, every_tensor=every_tensor)
    console.table("tensors", ("name", "dtype", "shape", "count", "bytes"), rows)
    return {"adapter": values.get("peft_type"), "parameters": parameters}


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file, DataError if it holds something else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"this is not valid JSON: {error}", path=file) from None
    if not isinstance(values, dict):
        raise DataError(f"a JSON object belongs here, not a {type(values).__name__}", path=file)
    return values


def _config(folder: Path) -> Facts:
    from leveret.model.count import count
    from leveret.model.families import family_for

    values = _read_object(folder / "config.json")
    config = family_for(str(values.get("model_type"))).config_from_hf(values)
    numbers = count(config)
    yield "family", config.family
    yield "layers", config.num_hidden_layers
    yield "hidden size", config.hidden_size
    yield "feed-forward size", config.intermediate_size
    yield "heads (query / key-value)", f"{config.num_attention_heads} / {config.num_key_value_heads}"
    if config.moe is not None:
        yield "experts (all / per token)", f"{config.moe.num_experts} / {config.moe.experts_per_token}"
    yield "longest sequence", config.max_position_embeddings
    if config.sliding_window is not None:
        yield "sliding window", config.sliding_window
    yield "bos / eos / pad", f"{config.bos_token_id} / {config.eos_token_id} / {config.pad_token_id}"
    if outside := config.ids_outside:
        yield "no ids of this model", f"{', '.join(outside)} (there are {config.vocab_size:,} ids)"
    yield "parameters", numbers.total
    if numbers.active != numbers.total:
        yield "parameters a token uses", numbers.active
    if quantization := values.get("quantization_config"):
        names = ("quant_method", "bits", "group_size", "sym", "bnb_4bit_quant_type")
        yield "quantization", ", ".join(f"{name} {quantization[name]}" for name in names if name in quantization)


def _tokenizer(folder: Path) -> Facts:
    from leveret.tokenizer.files import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        yield "tokenizer", None
        return
    tokenizer = Tokenizer.load(folder)
    special = list(tokenizer.special_ids)
    roles = ", ".join(f"{role} {token!r}" for role, token in tokenizer.special_tokens.items())
    yield "tokenizer", roles or "no roles named"
    yield "vocabulary", tokenizer.vocab_size
    yield "special tokens", f"{len(special)}: {' '.join(special[:12])}{' ...' if len(special) > 12 else ''}"


def _template(folder: Path) -> Facts:
    from leveret.chat.template import template_for
    from leveret.tokenizer.files import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        return
    tokenizer = Tokenizer.load(folder)
    if tokenizer.chat_template is None:
        yield "chat template", None
    else:
        stops = template_for(tokenizer).stops
        yield "chat template", f"{len(tokenizer.chat_template):,} characters, stops at {' '.join(map(repr, stops))}"


def _tools(folder: Path) -> Facts:
    from leveret.tools.schema import ToolSet

    if (folder / "tools.json").is_file():
        tools = ToolSet.load(folder)
        yield "tools", f"{len(tools)}: {', '.join(tools.names)}"


def _shards(folder: Path) -> Facts:
    """The files that an index of shards names and that are not there: a download that was interrupted."""
    for index in sorted(folder.glob("*.index.json")):
        named = set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values())
        if missing := sorted(name for name in named if not (folder / name).is_file()):
            yield "missing files", f"{len(missing)} of {len(named)}: {', '.join(missing)}"


_PARTS: tuple[tuple[str, Callable[[Path], Facts]], ...] = (
    ("config", _config),
    ("tokenizer", _tokenizer),
    ("chat template", _template),
    ("tools", _tools),
    ("index of shards", _shards),
)


def _stored(folder: Path, entries: list[TensorEntry]) -> Facts:
    forms = sorted({file.suffix for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")})
    yield "tensors", f"{len(entries)} ({by_dtype(entries)}) in {', '.join(forms)}" if entries else "no tensor file"
    values = sum(math.prod(entry.shape) for entry in entries)
    if entries and not any(entry.dtype.startswith(("I", "U")) for entry in entries):
        yield "values in the files", values
    yield "on disk", in_bytes(sum(file.stat().st_size for file in folder.iterdir() if file.is_file()))
    yield "model card", "README.md" if (folder / "README.md").is_file() else None


def _said(value: object) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
