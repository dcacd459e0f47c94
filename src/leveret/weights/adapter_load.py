"""The other way: an adapter's folder (adapter.py says what is in it) is put on the model underneath.

Accounting is strict: a tensor without a place and a target without tensors are errors, for an adapter that is lost
halfway still answers, as the model underneath. On another model than it was trained on there is a warning: that may be
meant (the same model, quantized), and may be a mistake.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from leveret.errors import CorruptedFile, MissingWeights, ShapeMismatch, UnexpectedWeights
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.families.family import Family
from leveret.model.lora import LoraLinear, lora_modules, wrap
from leveret.model.lora_targets import linears_by_stored_name
from leveret.model.token_rows import TokenRows, train_rows
from leveret.precision.swap import write_out_head
from leveret.weights.adapter import FINGERPRINT, MAGNITUDE, PREFIX, ROWS, SUFFIXES, TENSORS, WHOLE, A, B
from leveret.weights.adapter_layout import AdapterConfig
from leveret.weights.placing import assign, split
from leveret.weights.prefix import is_prefix, load_prefix
from leveret.weights.safetensors import name_some
from leveret.weights.tokens import resize_tokens


@torch.no_grad()
def load_adapter(model: Decoder, folder: str | Path, *, fingerprint: str | None = None, rounded: bool = True) -> None:
    """Put the adapter in `folder` on `model`, in place.

    fingerprint: of the files `model` was loaded from; if the adapter was trained on others, there is a warning.
    rounded: to the model's dtype, so that nothing is cast at each call; else it is in float32, to be merged.
    Raises ConfigError, MissingWeights, UnexpectedWeights, ShapeMismatch or CorruptedFile, naming the tensor.
    """
    directory = Path(folder)
    if is_prefix(directory):
        load_prefix(model, directory / TENSORS, dtype=model.norm.weight.dtype if rounded else torch.float32)
        return
    config = AdapterConfig.read(directory)
    tensors, trained_on = _read(directory / TENSORS)
    if fingerprint and trained_on and fingerprint != trained_on:
        warnings.warn(
            f"{directory} was trained on other weights than those it is put on (it names {config.base}): "
            "its answers will differ from those it was trained to give",
            stacklevel=2,
        )
    placed = _by_module(tensors, directory)
    model.requires_grad_(False)
    if any(suffix in held for held in placed.values() for suffix in (ROWS, WHOLE)):  # a quantized head has no rows
        write_out_head(model)
    _make_room(model, placed, config)
    _load_whole(model, placed, config, directory)
    _load_rows(model, placed, config, directory)
    _load_lora(model, placed, config, directory)
    if placed:
        names = {f"{PREFIX}{module}.{suffix}" for module, held in placed.items() for suffix in held}
        raise UnexpectedWeights(
            f"{len(names)} tensors of {directory / TENSORS} have no place in a {model.config.family} model: "
            f"{name_some(names)}",
            hint="was it trained on this model? nothing is left out silently",
        )
    if rounded:
        _round_to(model, model.norm.weight.dtype)


def tensors_by_module(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of an adapter: {module in the files: {suffix: tensor}}."""
    return _by_module(_read(folder / TENSORS)[0], folder)


def _read(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors, and the fingerprint of the model they were trained on, if it was kept."""
    if not file.is_file():
        other = file.with_name("adapter_model.bin")
        raise MissingWeights(f"{file} is not there", hint=f"load {other.name} with peft and save it again"
                             if other.is_file() else "is the download complete?")  # fmt: skip
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  # no mapping
            return tensors, (content.metadata() or {}).get(FINGERPRINT)
    except (SafetensorError, OSError) as error:
        raise CorruptedFile(f"{file} cannot be read: {error}", hint="it is cut short or damaged: fetch it again") from (
            error
        )


def _by_module(tensors: Mapping[str, Tensor], directory: Path) -> dict[str, dict[str, Tensor]]:
    """{module in the files: {suffix: tensor}}"""
    placed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key = name.removesuffix(".weight") if name.endswith(f"{MAGNITUDE}.weight") else name  # older peft's
        key = key.replace(".token_adapter.base_layer.weight", ".weight")  # a table under trained rows, saved with them
        key = key.replace(".base_layer.weight", ".weight")  # the same under an adapter
        suffix = next((end for end in SUFFIXES if key.endswith(f".{end}")), None)
        if suffix is None or not key.startswith(PREFIX):
            raise UnexpectedWeights(f"{directory / TENSORS} has a tensor of an unknown kind: {name}",
                                    hint=f"known are {PREFIX}(name in the files).({' | '.join(SUFFIXES)})")  # fmt: skip
        placed.setdefault(key.removeprefix(PREFIX).removesuffix(f".{suffix}"), {})[suffix] = tensor
    return placed


def _make_room(model: Decoder, placed: Mapping[str, Mapping[str, Tensor]], config: AdapterConfig) -> None:
    """Rows for tokens that the model underneath does not have."""
    family = family_for(model.config.family)
    needed = [1 + max(ids) for ids in config.token_ids.values() if ids]
    for name in ("embed_tokens", "lm_head"):
        if (table := placed.get(family.stored_module(name), {}).get(WHOLE)) is not None:
            needed.append(len(table))
    if needed and max(needed) > model.config.vocab_size:
        resize_tokens(model, max(needed))


def _load_whole(model: Decoder, placed: dict[str, dict[str, Tensor]], config: AdapterConfig, directory: Path) -> None:
    family = family_for(model.config.family)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    found = [stored for stored in placed if WHOLE in placed[stored]]
    _check_all_saved(config, found, directory)
    if not found:
        return
    untied = {name: model.get_parameter(f"{name}.weight").detach() for name in ("embed_tokens", "lm_head")}
    for stored in found:
        ours = family.our_names(f"{stored}.weight")
        if not ours or not set(ours) <= set(shapes):
            continue  # stays in `placed`, and is reported
        tensor = _taken(placed, stored, WHOLE)
        for name, part in split(tensor, ours, shapes, label=f"{stored} in {directory / TENSORS}").items():
            module = name.removesuffix(".weight")
            value = part.to(model.get_parameter(name))
            if module in untied:
                untied[module] = value
            else:
                assign(model, name, value)
    if model.config.tie_word_embeddings and not torch.equal(untied["embed_tokens"], untied["lm_head"]):
        _untie(model)
    for module, value in untied.items():
        owner = model.get_submodule(module)
        owner.weight = nn.Parameter(value, requires_grad=False)
    model.tie_weights()


def _untie(model: Decoder) -> None:
    """Give the head a table of its own."""
    model.config = dataclasses.replace(model.config, tie_word_embeddings=False)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)


def _check_all_saved(config: AdapterConfig, found: list[str], directory: Path) -> None:
    lost = {name for name in config.modules_to_save if not any(f".{stored}".endswith(f".{name}") for stored in found)}
    if lost:
        raise MissingWeights(f"{directory}: modules_to_save names {name_some(lost)}, but {TENSORS} has no such tensors",
                             hint="the adapter was not saved whole; save it again")  # fmt: skip


def _load_rows(model: Decoder, placed: dict[str, dict[str, Tensor]], config: AdapterConfig, directory: Path) -> None:
    family, ids = family_for(model.config.family), config.token_ids
    modules = {module: family.stored_module(module) for module in ("embed_tokens", "lm_head")}
    chosen = {module: next((ids[key] for key in ids if f".{stored}".endswith(f".{key}")), ())
              for module, stored in modules.items()}  # fmt: skip
    if not any(chosen.values()):
        return
    of_embedding, of_head = (placed.get(stored, {}).get(ROWS) for stored in modules.values())
    if model.config.tie_word_embeddings and of_head is not None:
        chosen["lm_head"] = chosen["lm_head"] or chosen["embed_tokens"]  # peft writes a tied table's rows twice
        if chosen["lm_head"] == chosen["embed_tokens"] and of_embedding is not None and of_head.equal(of_embedding):
            _taken(placed, modules["lm_head"], ROWS)
        else:
            _untie(model)
    train_rows(model, chosen["embed_tokens"], head_ids=chosen["lm_head"])
    for module, stored in modules.items():
        table = model.get_submodule(module)
        if not isinstance(table, TokenRows) or (module == "lm_head" and model.config.tie_word_embeddings):
            continue
        if ROWS not in placed.get(stored, {}):
            raise MissingWeights(f"{directory / TENSORS} has no rows for the tokens of {module}",
                                 hint="the adapter was not saved whole; save it again")  # fmt: skip
        _fill(table.rows, _taken(placed, stored, ROWS), f"{stored}.{ROWS} in {directory / TENSORS}")
        table.requires_grad_(False)


def _load_lora(model: Decoder, placed: dict[str, dict[str, Tensor]], config: AdapterConfig, directory: Path) -> None:
    there = linears_by_stored_name(model)
    expected = {stored for stored in there if _is_target(stored, config)} if config.whole_rule else set()
    family = family_for(model.config.family)
    given = {_named_as_we_do(stored, family): stored for stored in placed if {A, B} <= set(placed[stored])}
    if lost := expected - set(given):
        raise MissingWeights(f"{directory / TENSORS} lacks lora_A and lora_B of {len(lost)} targets: {name_some(lost)}",
                             hint="the adapter was not saved whole; save it again")  # fmt: skip
    if not given and not config.token_ids and not config.modules_to_save:
        raise MissingWeights(f"{directory / TENSORS} changes nothing: it holds no lora_A and lora_B",
                             hint="the adapter was not saved whole; save it again")  # fmt: skip
    for ours, stored in given.items():
        if ours not in there:
            continue
        settings, label = config.settings_of(stored), f"{stored} in {directory / TENSORS}"
        parts = wrap(model, there[ours], settings)
        _fill(parts[0].lora_A, _taken(placed, stored, A), f"lora_A of {label}")
        _fill_parts([part.lora_B for part in parts], _taken(placed, stored, B), f"lora_B of {label}")
        lengths = [part.magnitude for part in parts if part.magnitude is not None]
        if lengths:
            if MAGNITUDE not in placed.get(stored, {}):
                raise MissingWeights(f"use_dora is set, but there is no {MAGNITUDE} of {label}")
            _fill_parts(lengths, _taken(placed, stored, MAGNITUDE), f"{MAGNITUDE} of {label}")
    for module in lora_modules(model).values():
        module.requires_grad_(False)


def _is_target(stored: str, config: AdapterConfig) -> bool:
    if isinstance(config.targets, str):
        return re.fullmatch(config.targets, stored) is not None
    return any(f".{stored}".endswith(f".{name}") for name in config.targets)


def _named_as_we_do(stored: str, family: Family) -> str:
    """The name that we write, for another name of the same module (an alias of a family)."""
    ours = family.our_names(f"{stored}.weight")
    return family.stored_name(ours[0]).removesuffix(".weight") if ours else stored


def _taken(placed: dict[str, dict[str, Tensor]], stored: str, suffix: str) -> Tensor:
    """The tensor, which from now on has its place."""
    tensor = placed[stored].pop(suffix)
    if not placed[stored]:
        del placed[stored]
    return tensor


def _fill(place: Tensor, tensor: Tensor, label: str) -> None:
    if place.shape != tensor.shape:
        raise ShapeMismatch(
            f"{label} has shape {tuple(tensor.shape)}, {tuple(place.shape)} is expected",
            hint="rank and the model underneath must be those the adapter was trained with",
        )
    place.copy_(tensor)


def _fill_parts(places: list[nn.Parameter], tensor: Tensor, label: str) -> None:
    sizes = [len(place) for place in places]
    if len(tensor) != sum(sizes):
        raise ShapeMismatch(f"{label} has {len(tensor)} rows, {sum(sizes)} are expected",
                            hint="the model underneath must be the one the adapter was trained on")  # fmt: skip
    for place, part in zip(places, torch.split(tensor, sizes), strict=True):
        _fill(place, part, label)


def _round_to(model: Decoder, dtype: torch.dtype) -> None:
    for module in model.modules():
        if isinstance(module, LoraLinear | TokenRows):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
