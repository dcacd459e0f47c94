"""What a GGUF file holds: network, parameters, tokenizer, template, keys and tensors, read from its head alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leveret.cli.tensor_table import TensorEntry, by_dtype, table_rows
from leveret.console import Console
from leveret.weights.gguf_file import GgufFile, open_gguf

ROLES = ("bos", "eos", "eot", "unknown", "padding")


def describe_gguf(path: Path, console: Console, *, every_tensor: bool) -> dict[str, Any]:
    """Show tables; returns the figures that fit in a line. CorruptedFile if the file is none or cut short."""
    file = open_gguf(path)
    entries = [
        TensorEntry(name=name, dtype=file.type_of(name), shape=file.shape_of(name), num_bytes=int(tensor.n_bytes))
        for name, tensor in file.tensors.items()
    ]
    parameters = sum(math.prod(entry.shape) for entry in entries)
    facts = [*_network(file, parameters), *_tokenizer(file), ("tensors", f"{len(entries)} ({by_dtype(entries)})")]
    console.table(f"gguf {path}", ("what", "value"), facts)
    keys = [(key, _shortened(value)) for key, value in file.keys.items() if not key.startswith("GGUF.")]
    console.table(f"keys of {path}", ("key", "value"), keys)
    rows = table_rows(entries, every_tensor=every_tensor)
    console.table(f"tensors in {path}", ("name", "dtype", "shape", "count", "bytes"), rows)
    return {
        "family": file.keys.get("general.architecture"),
        "parameters": parameters,
        "tensors": len(entries),
        "bytes": sum(entry.num_bytes for entry in entries),
    }


def _network(file: GgufFile, parameters: int) -> Iterator[tuple[str, str]]:
    keys = file.keys
    architecture = str(keys.get("general.architecture", "-"))
    yield "name", str(keys.get("general.name", "-"))
    yield "family", architecture
    told = {
        "layers": "block_count", "hidden size": "embedding_length", "feed-forward size": "feed_forward_length",
        "longest sequence": "context_length", "experts": "expert_count", "experts a token uses": "expert_used_count",
    }  # fmt: skip
    yield "parameters", f"{parameters:,}"
    for what, key in told.items():
        if (value := keys.get(f"{architecture}.{key}")) is not None:
            yield what, f"{value:,}"
    heads = keys.get(f"{architecture}.attention.head_count")
    if heads is not None:
        yield "heads (query / key-value)", f"{heads} / {keys.get(f'{architecture}.attention.head_count_kv', heads)}"


def _tokenizer(file: GgufFile) -> Iterator[tuple[str, str]]:
    keys = file.keys
    tokens = keys.get("tokenizer.ggml.tokens")
    if tokens is None:
        yield "tokenizer", "-"
        return
    rule = keys.get("tokenizer.ggml.pre", "no rule named")
    yield "tokenizer", f"{keys.get('tokenizer.ggml.model')}, text is cut by {rule!r}"
    yield "vocabulary", f"{len(tokens):,}"
    named = {role: keys.get(f"tokenizer.ggml.{role}_token_id") for role in ROLES}
    special = [f"{role} {index} {tokens[index]!r}" for role, index in named.items()
               if index is not None and index < len(tokens)]  # fmt: skip
    yield "special tokens", ", ".join(special) or "-"
    if (begins := keys.get("tokenizer.ggml.add_bos_token")) is not None:
        yield "text begins with bos", "yes" if begins else "no"
    template = keys.get("tokenizer.chat_template")
    yield "chat template", "-" if template is None else f"{len(template):,} characters"


def _shortened(value: object) -> str:
    """A key's value in a line; of a list, how long it is."""
    if isinstance(value, list):
        return f"{len(value):,} values, the first {value[:3]!r}"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}... ({len(text):,} characters)"
