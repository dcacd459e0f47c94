"""`leveret inspect`: says what a path is and what is in it, from headers and small files, without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from leveret.cli.inspect_config import InspectConfig
from leveret.cli.inspect_model import describe_model
from leveret.cli.tensor_table import in_bytes, table_rows, tensors_in
from leveret.commands import StageResult
from leveret.console import Console, duration
from leveret.data.files import kind_of, read_lines
from leveret.errors import DataError
from leveret.pipeline.ledger import Ledger
from leveret.weights.bin_file import BIN_SUFFIXES


def run(config: InspectConfig, console: Console) -> StageResult:
    """Show every kind of thing that the path is (a training folder is a model folder with checkpoints)."""
    path = config.path
    if not path.exists():
        raise DataError("there is nothing here", path=path)
    kinds = [kind for kind in KINDS if kind.fits(path)]
    if not kinds:
        names = "".join(f"\n  {kind.name}: {kind.sign}" for kind in KINDS)
        raise DataError(f"this is nothing that leveret knows; it would know{names}", path=path)
    summary: dict[str, Any] = {"kind": ", ".join(kind.name for kind in kinds)}
    for kind in kinds:
        summary |= kind.describe(config, console)
    return StageResult(output=None, summary=summary)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of path."""

    name: str
    sign: str
    """How it is told, for people."""
    fits: Callable[[Path], bool]
    describe: Callable[[InspectConfig, Console], dict[str, Any]]


def _model(config: InspectConfig, console: Console) -> dict[str, Any]:
    return describe_model(config.path, console, every_tensor=config.every_tensor)


def _adapter(config: InspectConfig, console: Console) -> dict[str, Any]:
    from leveret.cli.inspect_model import describe_adapter

    return describe_adapter(config.path, console, every_tensor=config.every_tensor)


def _tokenizer(config: InspectConfig, console: Console) -> dict[str, Any]:
    from leveret.cli.inspect_model import describe_tokenizer

    return describe_tokenizer(config.path, console)


def _run_folder(config: InspectConfig, console: Console) -> dict[str, Any]:
    records = Ledger(config.path).read_all()
    rows = [
        (record.stage, record.command, record.status, record.seconds, _figures(record.summary), record.output or "-")
        for record in records
    ]
    seconds = sum(record.seconds for record in records)
    console.table(f"run {config.path}", ("stage", "command", "status", "seconds", "figures", "output"), rows)
    console.print(f"{len(records)} stages, {duration(seconds)} of work")
    return {"stages": len(records)}


def _training(config: InspectConfig, console: Console) -> dict[str, Any]:
    try:
        figures = json.loads((config.path / "outcome.json").read_text(encoding="utf-8"))["figures"]
        rows = [(name, value) for name, value in figures.items() if isinstance(value, str | int | float)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"this is no note of a training run: {error}", path=config.path / "outcome.json") from None
    results = [f"{config.path / name}" for name in ("model", "adapter") if (config.path / name).is_dir()]
    console.table(f"training run {config.path}", ("what", "value"), [*rows, ("result", ", ".join(results) or None)])
    return dict(rows)


def _checkpoints(config: InspectConfig, console: Console) -> dict[str, Any]:
    rows = []
    for manifest in sorted(config.path.rglob("step-*/manifest.json")):
        folder = manifest.parent
        files = [file for file in folder.iterdir() if file.is_file()]
        try:
            said = json.loads(manifest.read_text(encoding="utf-8"))
            missing = [name for name in said["files"] if not (folder / name).is_file()]
            step, state = said["step"], f"lacks {', '.join(missing)}" if missing else "whole"
        except (ValueError, KeyError, TypeError) as error:
            step, state = None, f"damaged manifest ({error})"
        written = datetime.fromtimestamp(manifest.stat().st_mtime).isoformat(" ", "seconds")
        size = in_bytes(sum(file.stat().st_size for file in files))
        rows.append((folder.relative_to(config.path).as_posix(), step, size, written, state))
    console.table(f"checkpoints in {config.path}", ("folder", "steps done", "size", "written", "state"), rows)
    return {"checkpoints": len(rows)}


def _shards(config: InspectConfig, console: Console) -> dict[str, Any]:
    from leveret.data.shards import TokenShards

    shards = TokenShards.open(config.path)
    rows = [
        ("files", f"{shards.report.num_shards:,}"),
        ("documents", f"{shards.num_documents:,}"),
        ("tokens", f"{shards.num_tokens:,}"),
        ("text", in_bytes(shards.num_bytes)),
        ("bytes a token", f"{shards.num_bytes / max(shards.num_tokens, 1):.2f}"),
    ]
    console.table(f"token shards {config.path}", ("what", "value"), rows)
    return {"tokens": shards.num_tokens, "documents": shards.num_documents}


def _tensors(config: InspectConfig, console: Console) -> dict[str, Any]:
    entries, metadata = tensors_in(config.path)
    rows = table_rows(entries, every_tensor=config.every_tensor)
    console.table(f"tensors in {config.path}", ("name", "dtype", "shape", "count", "bytes"), rows)
    numbers = sum(entry.num_bytes for entry in entries)
    parameters = sum(math.prod(entry.shape) for entry in entries)
    console.print(
        f"{len(entries)} tensors, {parameters:,} values, {in_bytes(numbers)}; metadata: {dict(metadata) or 'none'}"
    )
    return {"tensors": len(entries), "parameters": parameters, "bytes": numbers}


def _gguf(config: InspectConfig, console: Console) -> dict[str, Any]:
    from leveret.cli.inspect_gguf import describe_gguf

    return describe_gguf(config.path, console, every_tensor=config.every_tensor)


def _lines(config: InspectConfig, console: Console) -> dict[str, Any]:
    count, first = 0, None
    keys: dict[str, int] = {}
    for _, record in read_lines(config.path):
        first = record if first is None else first
        count += 1
        for key in record if isinstance(record, dict) else ("(no object)",):
            keys[key] = keys.get(key, 0) + 1
    console.table(f"{config.path}: {count:,} records", ("key", "records with it"), list(keys.items()))
    if first is not None:
        console.print("the first: " + json.dumps(first, ensure_ascii=False)[:400])
    return {"records": count}


def _is_only_a_tokenizer(path: Path) -> bool:
    """Whether it is no part of a model or an adapter, which tell of it themselves."""
    whole = ("config.json", "adapter_config.json")
    return (path / "tokenizer.json").is_file() and not any((path / name).is_file() for name in whole)


def _figures(summary: dict[str, Any]) -> str:
    plain = {name: value for name, value in summary.items() if isinstance(value, str | int | float)}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in plain.items()
    )[:100]


KINDS = (
    Kind(
        name="run folder",
        sign="a folder with stages/*.json",
        fits=lambda path: any((path / "stages").glob("*.json")),
        describe=_run_folder,
    ),
    Kind(
        name="training run",
        sign="a folder with outcome.json, as pretrain and finetune end",
        fits=lambda path: (path / "outcome.json").is_file(),
        describe=_training,
    ),
    Kind(
        name="model",
        sign="a folder with config.json",
        fits=lambda path: (path / "config.json").is_file(),
        describe=_model,
    ),
    Kind(
        name="checkpoints",
        sign="a folder with step-*/manifest.json, or with checkpoints/ in it",
        fits=lambda path: any(path.glob("step-*/manifest.json")) or any(path.glob("checkpoints/step-*/manifest.json")),
        describe=_checkpoints,
    ),
    Kind(
        name="token shards",
        sign="a folder with index.json and *.tokens.npy",
        fits=lambda path: (path / "index.json").is_file() and any(path.glob("*.tokens.npy")),
        describe=_shards,
    ),
    Kind(
        name="adapter",
        sign="a folder with adapter_config.json",
        fits=lambda path: (path / "adapter_config.json").is_file(),
        describe=_adapter,
    ),
    Kind(
        name="tokenizer",
        sign="a folder with tokenizer.json",
        fits=_is_only_a_tokenizer,
        describe=_tokenizer,
    ),
    Kind(
        name="tensors",
        sign="a .safetensors, .bin, .pt or .pth file",
        fits=lambda path: path.is_file() and path.suffix in (".safetensors", *BIN_SUFFIXES),
        describe=_tensors,
    ),
    Kind(
        name="gguf",
        sign="a .gguf file",
        fits=lambda path: path.is_file() and path.suffix == ".gguf",
        describe=_gguf,
    ),
    Kind(
        name="records",
        sign="a .jsonl file, also as .gz or .zst",
        fits=lambda path: path.is_file() and kind_of(path) in (".jsonl", ".ndjson"),
        describe=_lines,
    ),
)
