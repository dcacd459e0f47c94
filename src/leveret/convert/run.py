"""`leveret convert`: .bin, .safetensors or .gguf in, a clean model directory out, in any dtype, in bounded memory.

Open what was brought and account for every tensor of it; then write block by block, copy the small files, and record
what it was made of. Nothing of it has the final name before all of it is there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leveret.commands import StageResult
from leveret.console import Console
from leveret.convert.config import ConvertConfig
from leveret.convert.older_tokenizer import write_tokenizer_json
from leveret.convert.sources import Source, open_source
from leveret.model.families import family_for
from leveret.paths import atomic_directory, atomic_write, require_outside
from leveret.tokenizer.files import Tokenizer
from leveret.version import VERSION
from leveret.weights.fingerprint import fingerprint_of
from leveret.weights.load import as_dtype, read_config
from leveret.weights.rewrite import Rewritten, write_tensors
from leveret.weights.safetensors import find_weight_files

RECORD = "leveret-convert.json"


def run(config: ConvertConfig, console: Console) -> StageResult:
    """Convert; returns what it was made of and how many values changed."""
    with open_source(config) as source:
        require_outside(config.output, source.path)
        with atomic_directory(config.output) as draft:
            report = _write(config, source, draft, console)
            source.write_companions(draft)
            if (made := write_tokenizer_json(draft)) is not None:
                source.notes.append(made)
            atomic_write(draft / "config.json", _json(_config_values(config, source)))
            atomic_write(draft / RECORD, _json(_record(config, source, report, draft)))
            _check(draft, source)
    for note in source.notes:
        console.warn(note)
    console.print(f"{config.output}: {report.bytes / 1e6:,.1f} MB, {report.tensors:,} tensors; {report.line()}")
    summary = {"from": source.kind, "tensors": report.tensors, "bytes": report.bytes, "exact": report.exact}
    return StageResult(output=config.output, summary=summary)


def _write(config: ConvertConfig, source: Source, draft: Path, console: Console) -> Rewritten:
    family = family_for(source.tensors.config.family)
    with _silenced(), console.progress(f"convert {source.kind}", None, "tensor") as progress:
        return write_tensors(
            source.tensors,
            family,
            draft,
            dtype=as_dtype(config.dtype),
            progress=lambda done, _: progress.update(done),
        )


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Decoding blocks overflows in passing where a scale is huge; what counts is whether the values are finite."""
    import numpy as np

    with np.errstate(all="ignore"):
        yield


def _config_values(config: ConvertConfig, source: Source) -> dict[str, Any]:
    """The model's own config.json with the dtype that was chosen, and without the place of code."""
    values = dict(source.config_values)
    if removed := values.pop("auto_map", None):
        source.notes.append(f"config.json no longer names code to run (auto_map: {', '.join(sorted(removed))})")
    dtypes = source.tensors.dtypes
    dtype = config.dtype or str(dtypes["embed_tokens.weight"]).removeprefix("torch.")
    for key in [key for key in ("dtype", "torch_dtype") if key in values] or ["torch_dtype"]:
        values[key] = dtype
    values.setdefault("tie_word_embeddings", source.tensors.config.tie_word_embeddings)
    return values


def _record(config: ConvertConfig, source: Source, report: Rewritten, draft: Path) -> dict[str, Any]:
    """What the result was made of, for programs."""
    return {
        "leveret": VERSION,
        "source": source.name,
        "kind": source.kind,
        "files": source.files,
        "stored_as": source.stored_as,
        "dtype": config.dtype,
        "values": report.values,
        "rounded": report.rounded,
        "left_out": source.ignored,
        "weights": fingerprint_of(draft),
    }


def _check(draft: Path, source: Source) -> None:
    """What was written can be read."""
    read_config(draft)
    find_weight_files(draft)
    if (draft / "tokenizer.json").is_file():
        size = Tokenizer.load(draft).vocab_size
        if size > source.tensors.config.vocab_size:
            source.notes.append(
                f"the tokenizer has {size:,} ids, the model {source.tensors.config.vocab_size:,} rows: do they belong "
                "together?"
            )
    else:
        source.notes.append("there is no tokenizer.json; copy it from the model's original folder")


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
