"""The `tokenizer` command: gather texts, train, measure, save.

A small share of the texts (by the hash of each, see data/split.py) is kept out of training to measure on. Running
again with the same config and the same texts finds the finished tokenizer and does nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leveret.chat.template import builtin_template
from leveret.commands import StageResult
from leveret.config import fingerprint
from leveret.console import Console, Progress
from leveret.data.files import ReadReport, refuse_output_within
from leveret.data.readers import read_conversations, read_documents
from leveret.data.split import is_held_out
from leveret.errors import DataError
from leveret.paths import atomic_write, hash_tree, sha256_file
from leveret.segment.words import beginning
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.version import VERSION
from leveret.vocabulary.config import TokenizerConfig
from leveret.vocabulary.fertility import Fertility, FertilitySample

HELD_OUT = 0.02
"""The share of texts that is measured on instead of trained on."""

HELD_OUT_SEED = 1
"""Not that of `prepare`: among the texts it left to train on there is none that the same hash would hold out again."""

REPORT, TEMPLATE = "tokenizer_report.json", "chat_template.jinja"
"""The name of the report is not that of `prepare`, whose files may lie in the same folder."""

WRITTEN = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE)

PROGRESS_EVERY_BYTES = 1 << 20


def run(config: TokenizerConfig, console: Console) -> StageResult:
    """Train the tokenizer of `config` into `config.output`."""
    refuse_output_within([*config.documents, *config.conversations], config.output)
    key = _fingerprint(config)
    if (finished := _finished(config.output, key)) is not None:
        console.info(f"{config.output} holds this tokenizer already")
        return StageResult(output=config.output, summary=finished)
    report, sample = ReadReport(), FertilitySample()
    with console.progress("reading", None, unit="B") as progress:
        texts = _texts(config, report, sample, progress)
        tokenizer = _train(config, texts)
    if report.num_records == 0:
        raise DataError("there is no text to learn from", hint="look at the paths under documents and conversations")
    for line in report.lines():
        console.info(line)
    fertility = sample.measure(tokenizer)
    _show(console, tokenizer, fertility)
    summary = {"vocab_size": tokenizer.vocab_size, "fertility": _figures(fertility)}
    for stale in (REPORT, TEMPLATE):  # the report first: killed here, nobody takes the old files for finished ones
        (config.output / stale).unlink(missing_ok=True)
    tokenizer.save(config.output)
    files = {name: sha256_file(config.output / name) for name in WRITTEN if (config.output / name).is_file()}
    content = {"fingerprint": key, "summary": summary, "files": files}
    atomic_write(config.output / REPORT, json.dumps(content, indent=2) + "\n")
    return StageResult(output=config.output, summary=summary)


def _train(config: TokenizerConfig, texts: Iterator[str]) -> Tokenizer:
    template = None if config.template is None else builtin_template(config.template)
    special = [config.end_token, config.padding_token]
    special += template.special_tokens if template is not None else ()
    return train_byte_bpe(
        texts,
        vocab_size=config.vocab_size,
        special_tokens=list(dict.fromkeys([*special, *config.special_tokens])),
        split=config.split,
        min_frequency=config.min_frequency,
        eos_token=config.end_token,
        pad_token=config.padding_token,
        chat_template=None if template is None else template.source,
    )


def _texts(config: TokenizerConfig, report: ReadReport, sample: FertilitySample, progress: Progress) -> Iterator[str]:
    """The texts to train on, up to `max_bytes`: whole ones, or a part of the first. Some go to `sample` instead."""
    num_bytes = shown = 0
    for text in _all_texts(config, report):
        size = len(text.encode())
        if not num_bytes and size > config.max_bytes:
            report.dropped["the end of a text that alone is longer than max_bytes"] += 1
            text, size = beginning(text, config.max_bytes), config.max_bytes
        elif num_bytes + size > config.max_bytes:
            report.dropped["texts beyond max_bytes (at least)"] += 1
            return
        num_bytes += size
        if num_bytes - shown >= PROGRESS_EVERY_BYTES:
            shown = num_bytes
            progress.update(num_bytes)
        if not (is_held_out(text, HELD_OUT, seed=HELD_OUT_SEED) and sample.offer(text)):
            yield text
    progress.update(num_bytes)


def _all_texts(config: TokenizerConfig, report: ReadReport) -> Iterator[str]:
    if config.documents:
        for document in read_documents(config.documents, report):
            yield document.text
    if config.conversations:
        for conversation in read_conversations(config.conversations, report):
            yield from (message.content for message in conversation.messages if message.content)


def _show(console: Console, tokenizer: Tokenizer, fertility: dict[str, Fertility]) -> None:
    if not fertility:
        console.info(f"{tokenizer.vocab_size:,} tokens; no English or Chinese text was held out to measure on")
        return
    rows = [
        (language, f"{one.num_bytes:,}", f"{one.bytes_per_token:.2f}", f"{one.tokens_per_character:.2f}")
        for language, one in fertility.items()
    ]
    title = f"{tokenizer.vocab_size:,} tokens, measured on held-out text"
    console.table(title, ("language", "bytes", "bytes/token", "tokens/character"), rows)


def _figures(fertility: dict[str, Fertility]) -> dict[str, Any]:
    return {
        language: {**dataclasses.asdict(one), "bytes_per_token": round(one.bytes_per_token, 4)}
        for language, one in fertility.items()
    }


def _fingerprint(config: TokenizerConfig) -> str:
    """A hash of the config and of the content of every input, but not of where the output goes."""
    inputs = {str(path): _content_hash(path) for path in [*config.documents, *config.conversations]}
    settings = config.model_dump(mode="json", exclude={"output"})
    return fingerprint({"leveret": VERSION, "config": settings, "inputs": inputs})


def _content_hash(path: Path) -> str:
    if not path.exists():
        raise DataError("there is no such file or folder", path=path)
    return hash_tree(path) if path.is_dir() else sha256_file(path)


def _finished(output: Path, key: str) -> dict[str, Any] | None:
    """The summary of an earlier run of the same thing, if it is whole; a template may have been changed by hand."""
    path = output / REPORT
    if not path.is_file() or not (output / "tokenizer.json").is_file():
        return None
    try:
        report = json.loads(path.read_text("utf-8"))
        summary: dict[str, Any] = report["summary"]
        if report["fingerprint"] != key:
            return None
        damaged = [name for name, digest in report["files"].items() if sha256_file(output / name) != digest]
        return summary if set(damaged) <= {TEMPLATE} else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
