"""`leveret evaluate`: tool calls judged against request files, bits per byte of held-out text, all on record.

evaluation.json says what was measured, on which files (with their hashes), by which protocol and with which result;
failures.jsonl has every request that was not answered exactly. Evaluated again with nothing changed, the recorded
result is shown. Without an output folder nothing is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leveret.commands import StageResult
from leveret.config import fingerprint
from leveret.console import Console
from leveret.data.files import ReadReport, read_lines
from leveret.data.readers import read_documents
from leveret.engine.backends.names import is_url
from leveret.engine.text import TextModel
from leveret.errors import DataError, ToolError
from leveret.evaluate.bits_per_byte import PROTOCOL, bits_per_byte
from leveret.evaluate.config import EvaluateConfig
from leveret.evaluate.tables import show, show_failures
from leveret.evaluate.tool_calls import ToolEvaluation, evaluate_requests
from leveret.hub import is_adapter, model_under, resolve_model
from leveret.paths import atomic_write, hash_tree, sha256_file
from leveret.segment.words import beginning
from leveret.tools.requests import read_requests
from leveret.version import VERSION

REPORT, FAILURES = "evaluation.json", "failures.jsonl"


def run(config: EvaluateConfig, console: Console) -> StageResult:
    """Measure what the config asks for; returns the main figures of each file."""
    directory = Path(config.model) if Path(config.model).is_file() else resolve_model(config.model)
    inputs = _inputs(config, directory)
    report, failures = _recorded(config, inputs)
    if report is None:
        report, failures = _measure(config, directory, inputs, console)
        if config.output is not None:
            lines = (json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures)
            atomic_write(config.output / FAILURES, "".join(lines))
            atomic_write(config.output / REPORT, json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    else:
        console.info(f"nothing has changed since {config.output}/{REPORT} was written")
    show(report, console)
    show_failures(failures, config.shown_failures, console)
    if config.output is not None and failures:
        console.info(f"all {len(failures)} failures: {config.output / FAILURES}")
    return StageResult(output=config.output, summary=_summary(report))


def _measure(
    config: EvaluateConfig, directory: Path, inputs: dict[str, str], console: Console
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    model = TextModel.load(directory, backend=config.backend)
    evaluations = {name: _tool_calls(config, model, file, console) for name, file in _named(config.tools)}
    texts = {name: _text(config, model, file, console) for name, file in _named(config.text)}
    report = {
        "model": config.model,
        "leveret": VERSION,
        "inputs": inputs,
        "protocol": {
            "template": None if model.template is None else _template_record(model.template.source),
            "decoding": "greedy",
            "constrained": config.constrained,
            "backend": config.backend,
            "call_order": "any" if config.any_order else "as asked",
            "exact": "same tools and arguments; texts equal after Unicode NFC and without outer white space",
            "lenient": "as exact, without letter case, punctuation and spacing",
            "bits_per_byte": PROTOCOL,
        },
        "tools": {name: evaluation.to_json() for name, evaluation in evaluations.items()},
        "text": texts,
    }
    return report, [failure for evaluation in evaluations.values() for failure in evaluation.failures()]


def _tool_calls(config: EvaluateConfig, model: TextModel, file: Path, console: Console) -> ToolEvaluation:
    if model.tools is None or model.template is None:
        missing = "tools.json" if model.tools is None else "chat template"
        raise ToolError(f"{config.model} cannot call tools: it has no {missing}", hint="evaluate a fine-tuned model")
    requests = read_requests(file)[: config.max_requests]
    evaluation = evaluate_requests(
        model,
        model.tools,
        file,
        requests,
        console,
        constrained=config.constrained,
        any_order=config.any_order,
    )
    if evaluation.misfits:
        console.warn(
            f"{file}: {len(evaluation.misfits)} expected calls do not fit the model's tools and cannot be answered "
            f"right, the first: {evaluation.misfits[0]}"
        )
    if evaluation.not_asked:
        number = len(evaluation.not_asked)
        console.warn(
            f"{file}: {number} request{'s' * (number > 1)} could not be asked and count as failures, the first: "
            f"{evaluation.not_asked[0]}"
        )
    return evaluation


def _text(config: EvaluateConfig, model: TextModel, file: Path, console: Console) -> dict[str, Any]:
    console.info(f"bits per byte: {file}")
    read = ReadReport()
    score = bits_per_byte(
        model.model,
        model.tokenizer,
        _documents(file, config.max_text_bytes, read),
        vocab_size=model.model.config.vocab_size,
        window_tokens=min(config.window_tokens, model.engine.context_tokens),
    )
    if score.num_bytes == 0:
        raise DataError("holds no text", path=file)
    return {
        "file": str(file),
        "bits_per_byte": score.bits_per_byte,
        "bytes": score.num_bytes,
        "tokens": score.num_tokens,
        "documents": score.num_documents,
        "dropped": dict(read.dropped),
        "first_token_predicted_from": score.context_token,
        "window_tokens": score.window_tokens,
    }


def _documents(file: Path, most_bytes: int | None, read: ReadReport) -> Iterator[str]:
    """Whole documents while they fit; the first one always, cut if it alone is too long."""
    used = 0
    for document in read_documents([file], read):
        text = document.text
        if most_bytes is not None and used + len(text.encode()) > most_bytes:
            if used == 0:
                yield beginning(text, most_bytes)
            return
        used += len(text.encode())
        yield text


def _inputs(config: EvaluateConfig, directory: Path) -> dict[str, str]:
    """Hashes of everything the result depends on."""
    missing = next((file for file in (*config.tools, *config.text) if not file.is_file()), None)
    if missing is not None:
        raise DataError("is a folder; name the files in it" if missing.is_dir() else "no such file", path=missing)
    files = {str(file): sha256_file(file) for file in (*config.tools, *config.text)}
    settings = config.model_dump(mode="json", exclude={"output", "shown_failures"})
    own = [] if config.output is None else [config.output / REPORT, config.output / FAILURES]
    model = {"model": sha256_file(directory) if directory.is_file() else hash_tree(directory, without=own)}
    if is_adapter(directory):
        model["model under the adapter"] = hash_tree(model_under(directory))
    return {**files, **model, "settings": fingerprint(settings)}


def _recorded(config: EvaluateConfig, inputs: dict[str, str]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The report and failures in the output folder, if they were made from the same inputs; what a server behind a URL
    has loaded is not seen from here, so it is never taken for the same."""
    if config.output is None or is_url(config.backend):
        return None, []
    try:
        report = json.loads((config.output / REPORT).read_text("utf-8"))
        failures = [failure for _, failure in read_lines(config.output / FAILURES)]
    except (OSError, ValueError, DataError):
        return None, []
    if not all(isinstance(entry, dict) for entry in (report, *failures)):
        return None, []
    if report.get("inputs") != inputs or report.get("leveret") != VERSION:
        return None, []
    return report, failures


def _named(files: list[Path]) -> Iterator[tuple[str, Path]]:
    """Each file with a short name: its stem, or its path where two stems are the same."""
    stems = [file.stem for file in files]
    for file in files:
        yield (file.stem if stems.count(file.stem) == 1 else str(file)), file


def _template_record(source: str) -> str:
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, entry in report["tools"].items():
        summary[f"{name}: exact"] = entry["overall"]["exact_share"]
        summary |= {f"{name}: {kind}": tally["exact_share"] for kind, tally in entry["kinds"].items()}
        summary[f"{name}: unparsable"] = entry["overall"]["errors"].get("unparsable", 0)
    for name, entry in report["text"].items():
        summary[f"{name}: bits per byte"] = entry["bits_per_byte"]
    return summary
