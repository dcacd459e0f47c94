"""A model directory -> a Decoder: config, then tensors, with every one of them accounted for.

The model is first built without memory (PyTorch's meta device), so that loading needs the weights' size once and no
time is lost on random numbers that are thrown away. Linears that `quantization_config` declares quantized are swapped
before that, from outside, and then loaded like all else.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leveret.errors import ConfigError, UnexpectedWeights, WeightsError
from leveret.hub import is_adapter, model_under
from leveret.kernels.integer_product import words_in_tiles
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.meta import shapes_only
from leveret.model.token_rows import fold_rows
from leveret.precision.at_load import quantize_in_memory
from leveret.precision.int8_table import write_out_table
from leveret.precision.linear import QuantizedLinear
from leveret.precision.swap import choose_product, prepare_quantized
from leveret.weights.adapter_load import load_adapter
from leveret.weights.fingerprint import fingerprint_of
from leveret.weights.placing import HEAD, NUMBERS, assign, match_names, require_numbers, split
from leveret.weights.safetensors import find_weight_files, read_json

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip
"""Names under which a dtype can be asked for."""

RESULTS = ("model/config.json", "adapter/adapter_config.json")
"""What a run that trains leaves in its folder."""


def read_config(path: str | Path) -> ModelConfig:
    """The ModelConfig of a model directory (or of a config.json, or of the model under an adapter).

    ConfigError names the field that is wrong.
    """
    file = _config_file(Path(path))
    return _parse(file, _config_values(file))


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    adapter: str | Path | None = None,
    quantize: str | None = None,
) -> Decoder:
    """The model of a directory, ready for use (`eval`), on `device`.

    dtype: of the parameters; None: as the embedding is stored. Quantized tensors keep their own dtypes.
    adapter: a folder whose adapter is put on the model. A `path` that holds only an adapter brings the model under it.
    quantize: "int8", "int4" or "nf4": what the matrices are rounded to, in memory, before the adapter is put on.
    ConfigError, MissingWeights, UnexpectedWeights, ShapeMismatch and CorruptedFile name the file and the tensors.
    """
    directory = Path(path)
    if adapter is None and is_adapter(directory):
        adapter, directory = directory, model_under(directory)
    wanted = as_dtype(dtype)
    file = _config_file(directory)
    values = _config_values(file)
    config = _parse(file, values)
    if outside := config.ids_outside:
        warnings.warn(
            f"{file}: {', '.join(outside)}: there are {config.vocab_size:,} ids, so no text has it (a text that is to "
            "end there goes on)",
            stacklevel=2,
        )
    with shapes_only():
        model = Decoder(config)
    if quantization := values.get("quantization_config"):
        prepare_quantized(model, quantization, stored_name=family_for(config.family).stored_module)
    target = as_device(device)
    _fill(model, directory, wanted, target)
    if quantization and target.type != "cpu":
        choose_product(model)  # again: without memory it was chosen for a CPU
    if quantize is not None:
        quantize_in_memory(model, quantize)
    if adapter is not None:
        load_adapter(model, adapter, fingerprint=fingerprint_of(directory))
        fold_rows(model)
    return model.eval()


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by its name; ConfigError lists the names."""
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} is unknown; known are {', '.join(DTYPES)}", hint="or leave it out")
        return DTYPES[dtype]
    if dtype is not None and dtype not in NUMBERS:
        raise ConfigError(f"dtype {dtype} cannot hold a model's weights", hint="fewer bits: quantize='int8' or 'int4'")
    return dtype


def as_device(device: torch.device | str) -> torch.device:
    """A device that is there; ConfigError says what PyTorch has against it."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used: {str(error).partition(chr(10))[0]}",
            hint="device=cpu runs everywhere; `leveret doctor` says what is there",
        ) from error
    return found


def _parse(file: Path, values: dict[str, Any]) -> ModelConfig:
    try:
        return family_for(str(values.get("model_type"))).config_from_hf(values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.message}", hint=error.hint) from error


def _fill(model: Decoder, directory: Path, wanted: torch.dtype | None, device: torch.device) -> None:
    """Give every tensor of a model without memory its value from the files."""
    config = model.config
    files = find_weight_files(directory)
    held = match_names(model, family_for(config.family), files.file_of, directory)
    places = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in places.items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied_head: Tensor | None = None
    for stored, file, tensor in files.tensors():
        if stored not in held:
            continue
        label = f"{stored} in {directory / file}"
        if places[held[stored][0]].is_floating_point():
            require_numbers(tensor.dtype, label)
        for name, part in split(tensor, held[stored], shapes, label=label).items():
            if device.type == "cpu" and _hold_tiled(model, name, part):
                continue
            keep = part.dtype if wanted is None else wanted
            kind = keep if name in parameters else places[name].dtype
            # A copy, never a view of the mapped file: the file may be replaced while the model lives.
            value = torch.empty(part.shape, dtype=kind, device=device).copy_(part)
            if name == HEAD and config.tie_word_embeddings:
                tied_head = value
            else:
                assign(model, name, value)
    write_out_table(model.embed_tokens)
    embedding = model.embed_tokens.weight
    if tied_head is not None and not torch.equal(tied_head.to(embedding.dtype), embedding):
        raise UnexpectedWeights(
            f"{directory} has its own {HEAD}, but config.json ties the head to the embedding",
            hint='set "tie_word_embeddings": false in config.json, or remove the tensor',
        )
    model.tie_weights()
    for name, parameter in model.named_parameters():
        if parameter.dtype != embedding.dtype:
            assign(model, name, parameter.detach().to(embedding.dtype))


def _hold_tiled(model: Decoder, name: str, part: Tensor) -> bool:
    """Whether a tensor is the words of a quantized Linear; then they are copied straight into the kernels' order."""
    owner, _, attribute = name.rpartition(".")
    linear = model.get_submodule(owner) if attribute == "qweight" else None
    if not isinstance(linear, QuantizedLinear) or not linear.can_be_tiled():
        return False
    linear.hold_for_kernels(words_in_tiles(part))
    return True


def _config_file(path: Path) -> Path:
    file = path if path.is_file() else model_under(path) / "config.json"
    if not file.is_file():
        inner = next(((path / name).parent for name in RESULTS if (path / name).is_file()), None)
        hint = "a save that was interrupted leaves none; else check the path"
        raise WeightsError(
            f"{path} is no model directory: it has no config.json",
            hint=hint if inner is None else f"it is the folder of a run, whose result is {inner}",
        )
    return file


def _config_values(file: Path) -> dict[str, Any]:
    """config.json's content. A key that stands there twice counts as JSON says, the last one, but not silently."""
    values = read_json(file)
    repeated: Counter[str] = Counter()

    def count(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        times = Counter(key for key, _ in pairs)
        repeated.update({key: number for key, number in times.items() if number > 1})
        return dict(pairs)

    json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=count)
    for key in repeated:
        warnings.warn(f"{file} has {key!r} more than once; the last one counts: {values.get(key)!r}", stacklevel=3)
    return values
