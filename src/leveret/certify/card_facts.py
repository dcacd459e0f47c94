"""What a model card can say truthfully: facts read from the model directory and from the stages that made it.

Of the model: its config, size on disk, number format and tools. Of a stage's folder: the pipeline's record beside it
(settings, results, time) or its outcome.json, the training curve of metrics.jsonl, the scores of evaluation.json,
whichever are there.
Nothing is guessed: what no file says is not in the card.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.certify.card_quantization import QuantizationFacts, quantization_facts
from leveret.certify.card_scores import scores_of
from leveret.errors import DataError
from leveret.hub import model_under, name_of
from leveret.model.config import ModelConfig
from leveret.model.count import Count, count
from leveret.tools.schema import ToolSet
from leveret.trainer.metrics import read_metrics
from leveret.weights.load import read_config
from leveret.weights.safetensors import find_weight_files, read_json


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the model directory says."""

    name: str
    """The directory's name."""
    config: ModelConfig
    parameters: Count
    bytes_on_disk: int
    """Size of the weight files."""
    dtype: str
    """Number format of weights that are not quantized."""
    quantization: QuantizationFacts | None
    """If its weights are quantized."""
    tools: tuple[str, ...]
    """Names of the functions it calls."""


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What is on record of a stage."""

    name: str
    command: str | None
    """The command that made it, if the pipeline recorded it."""
    seconds: float | None
    settings: dict[str, str]
    """Its config, flat."""
    results: dict[str, str]
    """Its summary, flat."""
    curve: tuple[dict[str, Any], ...]
    """Lines of metrics.jsonl."""
    scores: dict[str, str]
    """Measure -> figure, from evaluation.json."""


def model_facts(directory: Path) -> ModelFacts:
    """Read a model directory; WeightsError or ConfigError when it is not one."""
    base = model_under(directory)
    values, config = read_json(base / "config.json"), read_config(base)
    files = find_weight_files(base)
    return ModelFacts(
        name=name_of(directory),
        config=config,
        parameters=count(config),
        bytes_on_disk=sum((base / file).stat().st_size for file in set(files.file_of.values())),
        dtype=str(values.get("dtype") or values.get("torch_dtype") or "unknown"),
        quantization=quantization_facts(base, values.get("quantization_config")),
        tools=ToolSet.load(directory).names if (directory / "tools.json").is_file() else (),
    )


def stage_facts(folder: Path) -> StageFacts:
    """Read a stage's folder; DataError when there is nothing in it to tell."""
    record_file = folder.parent / "stages" / f"{folder.name}.json"
    record = read_json(record_file) if record_file.is_file() else {}
    outcome_file = folder / "outcome.json"  # of a training stage; it has less than the pipeline's record
    outcome = read_json(outcome_file) if outcome_file.is_file() else {}
    evaluation = folder / "evaluation.json"
    facts = StageFacts(
        name=folder.name,
        command=record.get("command"),
        seconds=record.get("seconds"),
        settings=flat(record.get("parts", {}).get("config") or outcome.get("identity", {})),
        results=flat(record.get("summary") or outcome.get("figures", {})),
        curve=tuple(read_metrics(folder / "metrics.jsonl")),
        scores=scores_of(read_json(evaluation)) if evaluation.is_file() else {},
    )
    if not (record or outcome or facts.curve or facts.scores):
        raise DataError(
            "there is nothing to tell in the card: no pipeline record, outcome.json, metrics.jsonl or evaluation.json",
            path=folder,
        )
    return facts


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as `outer.inner` -> text; what is off (None, empty) and long lists of results are left out."""
    return dict(_flat(values, prefix))


def number(value: float) -> str:
    """A figure for people: 1,234 or 0.8123 or 2.1e-05."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (abs(value) >= 1000 and value == int(value)):
        return f"{int(value):,}"
    return f"{value:.4g}"


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, int | float):
            yield name, number(value)
        elif isinstance(value, str) and value:
            yield name, value
        elif isinstance(value, list) and value and len(json.dumps(value, ensure_ascii=False)) <= 200:
            texts = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in value]
            yield name, ", ".join(texts)
