"""`leveret quantize`: a model directory in, a smaller one out, with a report of what was lost.

Read the source, fill a quantized model tensor by tensor, write it beside the tokenizer, template and tools of the
source, and say per layer and in perplexity what it cost. The output appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from leveret.commands import StageResult
from leveret.console import Console
from leveret.engine.perplexity import Window, perplexity, windows_from_files
from leveret.errors import ConfigError
from leveret.hub import is_quantized, resolve_whole_model
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.paths import atomic_directory, atomic_write, require_outside
from leveret.precision.awq_layout import AwqStorage
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.int8_table import round_table, store_table, table_of
from leveret.precision.linear import IntegerStorage
from leveret.precision.nf4_layout import KEPT_WHOLE, Nf4Storage
from leveret.precision.swap import KEPT_NAMES, Storage, choose_product
from leveret.quantize.awq import Awq
from leveret.quantize.calibrated import CalibratedFilling, Method
from leveret.quantize.calibration import Calibration, read_calibration
from leveret.quantize.config import CALIBRATED, UNUSED, QuantizeConfig
from leveret.quantize.gptq import Gptq, GptqSettings
from leveret.quantize.report import LayerReport, mean_error, show
from leveret.quantize.tensors import empty_quantized, fill_quantized, linears_named, quantized_layers
from leveret.tokenizer.files import Tokenizer
from leveret.weights.companions import copy_companions
from leveret.weights.load import as_dtype, load_model, read_config
from leveret.weights.safetensors import find_weight_files
from leveret.weights.save import save_model

SUMMARY = (
    "bits", "group_size", "bytes_before", "bytes_after", "relative_error", "perplexity_before", "perplexity_after",
)  # fmt: skip
"""Keys of the report that the stage's summary has."""

ROUTERS = r".*\.(?:gate|router)$"
"""Written into the config of a mixture of experts, so that other readers leave its routers alone as ours does."""


def run(config: QuantizeConfig, console: Console) -> StageResult:
    """Quantize and write; returns sizes, the mean error and the perplexities."""
    source = resolve_whole_model(config.model, purpose="quantizing")
    require_outside(config.output, source)
    _tell_what_is_in_vain(config, source, console)
    storage = _storage(config, source)
    calibration = _calibration(config, source, console)
    windows = _windows(config, source, calibration)
    if calibration is None:
        before = perplexity(load_model(source), windows) if windows else None
        model, layers = _quantize(config, source, storage, console)
    else:
        model, layers, before = _calibrate(config, source, storage, calibration, windows, console)
    table = _round_embedding(model) if config.quantize_embedding else None
    console.info(choose_product(model))
    after = perplexity(model, windows) if windows else None
    report: dict[str, Any] = {
        "method": config.method,
        "bits": config.bits,
        **storage.to_dict(),
        **_calibration_facts(config, calibration),
        "bytes_before": _weight_bytes(source),
        "perplexity_before": before,
        "perplexity_after": after,
        "text_tokens": sum(len(window.ids) for window in windows),
        "relative_error": mean_error(layers),
        "rounded_alone": sum(layer.reason is not None for layer in layers),
        "layers": [asdict(layer) for layer in layers],
    }
    if table is not None:
        store_table(model.embed_tokens, *table)
    with atomic_directory(config.output) as draft:
        save_model(model, draft, quantization_config=storage.to_dict())
        copy_companions(source, draft)
        report["bytes_after"] = _weight_bytes(draft)
        atomic_write(draft / "quantization.json", json.dumps(report, indent=1) + "\n")
    show(report, layers, console)
    return StageResult(
        output=config.output, summary={key: report[key] for key in SUMMARY if report.get(key) is not None}
    )


def _tell_what_is_in_vain(config: QuantizeConfig, source: Path, console: Console) -> None:
    """Warn of keys that the method does not read, and of patterns in `skip` that no layer has in its name."""
    if unused := sorted(UNUSED[config.method] & config.model_fields_set):
        console.warn(f"method {config.method} does not use {', '.join(unused)}")
    model = read_config(source)
    for pattern in config.skip:
        if not linears_named(model, [pattern]):
            console.warn(f"skip: no layer has {pattern!r} in its name")


def _storage(config: QuantizeConfig, source: Path) -> Storage:
    if is_quantized(source):
        raise ConfigError(f"{source} is quantized already", hint="start from the model it was made of")
    model = read_config(source)
    if config.quantize_lm_head and model.tie_word_embeddings:
        raise ConfigError(
            "quantize_lm_head: the output matrix is the embedding", hint="quantize_embedding stores it in 8 bits"
        )
    if config.method == "nf4":
        return Nf4Storage(skipped=(*KEPT_WHOLE, *linears_named(model, config.skip)))
    if config.method == "awq":
        return AwqStorage(group_size=config.group_size, skipped=("lm_head", *_left_alone(model, config.skip)))
    routers = (ROUTERS,) if model.moe is not None else ()
    return GptqStorage(
        bits=config.bits,
        group_size=config.group_size,
        symmetric=config.symmetric,
        desc_act=config.desc_act and config.method == "gptq",
        lm_head=config.quantize_lm_head,
        embedding_in_8_bits=config.quantize_embedding,
        skipped=(*routers, *(f".*(?:{pattern})" for pattern in config.skip)),
    )


def _left_alone(model: ModelConfig, skip: Sequence[str]) -> list[str]:
    """Routers and what is to be skipped, by the names that the files have."""
    routers = [rf"\.{name}$" for name in KEPT_NAMES]
    return linears_named(model, [*routers, *skip])


def _calibration(config: QuantizeConfig, source: Path, console: Console) -> Calibration | None:
    if config.method not in CALIBRATED:
        return None
    calibration = read_calibration(
        config.calibration,
        Tokenizer.load(source),
        row_tokens=min(config.calibration_row_tokens, read_config(source).max_position_embeddings),
        most_tokens=config.calibration_tokens,
        held_out_tokens=0 if config.text else config.text_tokens,
    )
    held_out = sum(len(window.ids) for window in calibration.held_out)
    line = f"calibration: {calibration.tokens:,} tokens of {calibration.documents:,} documents"
    console.info(line + (f"; {held_out:,} tokens are held out for perplexity" if held_out else ""))
    return calibration


def _round_embedding(model: Decoder) -> tuple[Tensor, Tensor]:
    """What a file will hold of the embedding; the model's becomes what is read from it."""
    table = round_table(model.embed_tokens.weight)
    model.embed_tokens.weight = nn.Parameter(table_of(*table))
    model.tie_weights()
    return table


def _calibration_facts(config: QuantizeConfig, calibration: Calibration | None) -> dict[str, Any]:
    if calibration is None:
        return {}
    facts = {"calibration_tokens": calibration.tokens, "calibration_documents": calibration.documents}
    return facts | ({"damp": config.damp} if config.method == "gptq" else {})


def _windows(config: QuantizeConfig, source: Path, calibration: Calibration | None) -> list[Window]:
    if not config.text:
        return [] if calibration is None else list(calibration.held_out)
    context = read_config(source).max_position_embeddings
    return windows_from_files(
        config.text, Tokenizer.load(source), context_tokens=context, most_tokens=config.text_tokens
    )


def _quantize(
    config: QuantizeConfig, source: Path, storage: Storage, console: Console
) -> tuple[Decoder, list[LayerReport]]:
    model = empty_quantized(read_config(source), storage)
    filling = fill_quantized(model, source, storage, search=config.search, other_dtype=as_dtype(config.other_dtype))
    return model, _all_layers(config, model, filling, console)


def _calibrate(
    config: QuantizeConfig,
    source: Path,
    storage: Storage,
    calibration: Calibration,
    windows: list[Window],
    console: Console,
) -> tuple[Decoder, list[LayerReport], float | None]:
    """The quantized model, the reports, and the perplexity before."""
    assert isinstance(storage, IntegerStorage)
    model = empty_quantized(read_config(source), storage)
    filling = CalibratedFilling(
        model, source, storage, _method(config), calibration, windows=windows, fewest_tokens=config.fewest_tokens,
        search=config.search, other_dtype=as_dtype(config.other_dtype),
    )  # fmt: skip
    layers = _all_layers(config, model, filling, console)
    for layer in layers:
        if layer.reason is not None:
            console.warn(f"{layer.name} was rounded to nearest: {layer.reason}")
    return model, layers, filling.perplexity_before


def _method(config: QuantizeConfig) -> Method:
    if config.method == "awq":
        return Awq(group_size=config.group_size, search=config.search)
    settings = GptqSettings(
        bits=config.bits, group_size=config.group_size, symmetric=config.symmetric, search=config.search,
        descending=config.desc_act, damp=config.damp,
    )  # fmt: skip
    return Gptq(settings)


def _all_layers(
    config: QuantizeConfig, model: Decoder, filling: Iterable[LayerReport], console: Console
) -> list[LayerReport]:
    layers: list[LayerReport] = []
    name = "NF4" if config.method == "nf4" else f"{config.bits} bits"
    with console.progress(f"quantize to {name}", len(quantized_layers(model)), "layer") as progress:
        for layer in filling:
            layers.append(layer)
            progress.update(
                len(layers), error=layer.relative_error if layer.output_error is None else layer.output_error
            )
    return layers


def _weight_bytes(directory: Path) -> int:
    return sum((directory / file).stat().st_size for file in set(find_weight_files(directory).file_of.values()))
