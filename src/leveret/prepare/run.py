"""The `prepare` command: gather text, split it, generate requests for a tool set.

Everything is a function of the config, the inputs and the seed: run twice, it writes the same bytes. Each file is
written whole or not at all, and `report.json` last: running again with the same config and the same inputs finds the
finished files and does nothing. A killed run starts over, for it is short. Nothing is taken away but what an earlier
run has written: whatever else lies in the output folder is somebody's own. Until the run is done the report says only
which files it is about to write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leveret.commands import StageResult
from leveret.config import fingerprint
from leveret.console import Console
from leveret.data.examples import Document
from leveret.data.files import refuse_output_within
from leveret.errors import ConfigError
from leveret.paths import atomic_write, sha256_file
from leveret.prepare.config import PrepareConfig
from leveret.prepare.documents import divide, gather, write_documents
from leveret.prepare.requests import prepare_requests
from leveret.version import VERSION

REPORT = "report.json"

WRITTEN: dict[str, tuple[str, ...]] = {
    "train_documents": ("text.train.jsonl",),
    "valid_documents": ("text.valid.jsonl",),
    "train_requests": ("requests.train.jsonl", "requests.text.jsonl", "values.text.jsonl"),
    "held_out_single": ("held_out.single.jsonl",),
    "held_out_combined": ("held_out.combined.jsonl",),
    "held_out_irrelevant": ("held_out.irrelevant.jsonl",),
}
"""The counts of the report, and the files that are there when a count is above 0."""


def run(config: PrepareConfig, console: Console) -> StageResult:
    """Write the files of `config.output`."""
    _refuse_own_files(config)
    documents = gather(config, console)
    key = _fingerprint(config, documents)
    report = _read_report(config.output)
    if report.get("fingerprint") == key and _is_whole(config.output, report):
        console.info(f"{config.output} holds these files already")
        return StageResult(output=config.output, summary=report["summary"])
    _remove(config.output, report)
    train, valid = divide(documents, config.validation_share)
    _announce(config, train, valid)
    summary = _write_texts(config.output, train, valid, console)
    if config.requests is not None:
        summary |= prepare_requests(config.requests, train, seed=config.seed, output=config.output, console=console)
    _write_report(config.output, key, summary)
    return StageResult(output=config.output, summary=summary)


def _refuse_own_files(config: PrepareConfig) -> None:
    """ConfigError when a document is, or holds, what is about to be written: it would be overwritten, or read again."""
    refuse_output_within(config.documents, config.output)
    own = {config.output.resolve() / name for names in WRITTEN.values() for name in names}
    for path in config.documents:
        if path.resolve() in own:
            raise ConfigError(f"{path} is read, and would be written over", hint="choose another output folder")


def _write_texts(
    output: Path, train: Sequence[Document], valid: Sequence[Document], console: Console
) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, part in (("train", train), ("valid", valid)):
        if part:
            write_documents(output / f"text.{name}.jsonl", part)
            num_bytes = sum(len(document.text.encode()) for document in part)
            counts |= {f"{name}_documents": len(part), f"{name}_bytes": num_bytes}
            console.info(f"text.{name}.jsonl: {len(part):,} documents, {num_bytes:,} bytes")
    return counts


def _fingerprint(config: PrepareConfig, documents: Sequence[Document]) -> str:
    """A hash of the config, the texts, the tools and the phrase books, but not of where they lie or the output goes."""
    paths = {"tools", "phrases"}
    inputs = [] if config.requests is None else [config.requests.tools, *config.requests.phrases]
    return fingerprint(
        {
            "leveret": VERSION,
            "config": config.model_dump(mode="json", exclude={"output": True, "documents": True, "requests": paths}),
            "documents": [[document.text, document.source] for document in documents],
            "inputs": [sha256_file(path) if path.is_file() else None for path in inputs],
        }
    )


def _announce(config: PrepareConfig, train: Sequence[Document], valid: Sequence[Document]) -> None:
    """Write a report of the files that will be new, without hashes: should this run be killed, the next one knows what
    it left."""
    names = [
        name for part, key in ((train, "train_documents"), (valid, "valid_documents")) if part for name in WRITTEN[key]
    ]
    if config.requests is not None:
        names += [name for key in WRITTEN if "documents" not in key for name in WRITTEN[key]]
    new = {name: None for name in sorted(names) if not (config.output / name).exists()}
    atomic_write(config.output / REPORT, json.dumps({"files": new}, indent=2) + "\n")


def _write_report(output: Path, key: str, summary: dict[str, int]) -> None:
    names = sorted(name for count, names in WRITTEN.items() if summary.get(count) for name in names)
    files = {name: sha256_file(output / name) for name in names}
    content = {"fingerprint": key, "summary": summary, "files": files}
    atomic_write(output / REPORT, json.dumps(content, indent=2) + "\n")


def _read_report(output: Path) -> dict[str, Any]:
    try:
        report = json.loads((output / REPORT).read_text("utf-8"))
        return report if isinstance(report, dict) and isinstance(report.get("files"), dict) else {}
    except (OSError, ValueError):
        return {}


def _is_whole(output: Path, report: dict[str, Any]) -> bool:
    files = report["files"].items()
    return all((output / name).is_file() and sha256_file(output / name) == digest for name, digest in files)


def _remove(output: Path, report: dict[str, Any]) -> None:
    """Take away what an earlier run with another config has written, its report first."""
    known = {name for names in WRITTEN.values() for name in names}
    for name in (REPORT, *(known & set(report.get("files", ())))):
        (output / name).unlink(missing_ok=True)
