"""`leveret quantize`: a model directory in, a smaller one out, with a report of what was lost.

Read the source, fill a quantized model tensor by tensor, write it beside the tokenizer, template and tools of the
source, and say per layer and in perplexity what it cost. The output appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leveret.commands import StageResult
from leveret.console import Console
from leveret.engine.perplexity import Window, perplexity, windows_from_files
from leveret.errors import ConfigError
from leveret.hub import resolve_whole_model
from leveret.model.decoder import Decoder
from leveret.paths import atomic_directory, atomic_write
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.nf4_layout import KEPT_WHOLE, Nf4Storage
from leveret.precision.swap import Storage, choose_product
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.tensors import LayerReport, empty_quantized, fill_quantized, linears_named, quantized_layers
from leveret.tokenizer.files import Tokenizer
from leveret.weights.load import as_dtype, load_model, read_config
from leveret.weights.safetensors import find_weight_files, read_json
from leveret.weights.save import save_model

CARRIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
    "tools.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""Files of the source that belong to the quantized model as well."""

SUMMARY = (
    "bits", "group_size", "bytes_before", "bytes_after", "relative_error", "perplexity_before", "perplexity_after",
)  # fmt: skip
"""Keys of the report that the stage's summary has."""

SHOWN_LAYERS = 8
"""Layers in the printed table; quantization.json has them all."""

ROUTERS = r".*\.(?:gate|router)$"
"""Written into the config of a mixture of experts, so that other readers leave its routers alone as ours does."""


def run(config: QuantizeConfig, console: Console) -> StageResult:
    """Quantize and write; returns sizes, the mean error and the perplexities."""
    source = resolve_whole_model(config.model, purpose="quantizing")
    storage = _storage(config, source, console)
    windows = _windows(config, source)
    before = perplexity(load_model(source), windows) if windows else None
    model, layers = _quantize(config, source, storage, console)
    console.info(choose_product(model))
    after = perplexity(model, windows) if windows else None
    report: dict[str, Any] = {
        "method": config.method,
        "bits": config.bits,
        **storage.to_dict(),
        "bytes_before": _weight_bytes(source),
        "perplexity_before": before,
        "perplexity_after": after,
        "text_tokens": sum(len(window.ids) for window in windows),
        "relative_error": _mean_error(layers),
        "layers": [asdict(layer) for layer in layers],
    }
    with atomic_directory(config.output) as draft:
        save_model(model, draft, generation=_generation(source), quantization_config=storage.to_dict())
        _carry_over(source, draft)
        report["bytes_after"] = _weight_bytes(draft)
        atomic_write(draft / "quantization.json", json.dumps(report, indent=1) + "\n")
    _show(report, layers, console)
    return StageResult(
        output=config.output, summary={key: report[key] for key in SUMMARY if report.get(key) is not None}
    )


def _storage(config: QuantizeConfig, source: Path, console: Console) -> Storage:
    if "quantization_config" in read_json(source / "config.json"):
        raise ConfigError(f"{source} is quantized already", hint="start from the model it was made of")
    model = read_config(source)
    if config.quantize_lm_head and model.tie_word_embeddings:
        raise ConfigError("quantize_lm_head: the output matrix is the embedding, which is not quantized")
    if config.method == "nf4":
        if unused := sorted({"group_size", "symmetric", "search"} & config.model_fields_set):
            console.warn(f"method nf4 does not use {', '.join(unused)}: blocks of 64, levels of their own")
        return Nf4Storage(skipped=(*KEPT_WHOLE, *linears_named(model, config.skip)))
    routers = (ROUTERS,) if model.moe is not None else ()
    return GptqStorage(
        bits=config.bits,
        group_size=config.group_size,
        symmetric=config.symmetric,
        lm_head=config.quantize_lm_head,
        skipped=(*routers, *(f".*(?:{pattern})" for pattern in config.skip)),
    )


def _windows(config: QuantizeConfig, source: Path) -> list[Window]:
    if not config.text:
        return []
    context = read_config(source).max_position_embeddings
    return windows_from_files(
        config.text, Tokenizer.load(source), context_tokens=context, most_tokens=config.text_tokens
    )


def _quantize(
    config: QuantizeConfig, source: Path, storage: Storage, console: Console
) -> tuple[Decoder, list[LayerReport]]:
    model = empty_quantized(read_config(source), storage)
    total = len(quantized_layers(model))
    layers: list[LayerReport] = []
    with console.progress(
        f"quantize to {'NF4' if config.method == 'nf4' else f'{config.bits} bits'}", total, "layer"
    ) as progress:
        for layer in fill_quantized(
            model, source, storage, search=config.search, other_dtype=as_dtype(config.other_dtype)
        ):
            layers.append(layer)
            progress.update(len(layers), error=layer.relative_error)
    return model, layers


def _mean_error(layers: list[LayerReport]) -> float:
    """Relative error over all quantized weights, each layer counted by its size."""
    parameters = sum(layer.parameters for layer in layers)
    return math.sqrt(sum(layer.parameters * layer.relative_error**2 for layer in layers) / parameters)


def _generation(source: Path) -> dict[str, Any] | None:
    file = source / "generation_config.json"
    return read_json(file) if file.is_file() else None


def _carry_over(source: Path, target: Path) -> None:
    for pattern in CARRIED:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copy2(file, target / file.name)


def _weight_bytes(directory: Path) -> int:
    return sum((directory / file).stat().st_size for file in set(find_weight_files(directory).file_of.values()))


def _show(report: dict[str, Any], layers: list[LayerReport], console: Console) -> None:
    worst = sorted(layers, key=lambda layer: layer.relative_error, reverse=True)[:SHOWN_LAYERS]
    rows = [(layer.name, layer.relative_error, layer.bytes_before, layer.bytes_after) for layer in worst]
    title = f"The {len(worst)} of {len(layers)} layers that lost most"
    console.table(title, ("layer", "relative error", "bytes before", "bytes after"), rows)
    before, after = report["bytes_before"], report["bytes_after"]
    line = f"{before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB ({after / before:.0%}), "
    line += f"relative error {report['relative_error']:.4f}"
    if report["perplexity_before"] is not None:
        line += f", perplexity {report['perplexity_before']:.3f} -> {report['perplexity_after']:.3f}"
    console.print(line)
