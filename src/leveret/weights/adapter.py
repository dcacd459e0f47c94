"""An adapter's folder in peft's layout: written from a trained model, and put back on the model underneath.

    adapter_config.json          what it is like, and the model underneath (adapter_layout.py)
    adapter_model.safetensors    the trained tensors, by the names that the model underneath has in its files:
        base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight          (rank, inputs)
        base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight          (outputs, rank)
        base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector  (outputs,), with DoRA
        base_model.model.model.embed_tokens.weight                              a module of modules_to_save
        base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta   rows of tokens, (tokens, hidden)

A prefix (prefix.py) is a single tensor instead. A matrix that is fused in the files (`qkv_proj`) has one A, and the B's
of its parts stacked. Which model is underneath is kept as a fingerprint of its tensors (`fingerprint.py`), in the
metadata of the file. adapter_load.py reads all this.

peft refuses a dropout on experts and routers, also in order to use them. It matters in training alone, so where they
are changed the config names none.

A tied head: whoever loads the embedding alone keeps the old head. So both are written, equal; where a file has
different ones, made by a program that trained two copies, the model is untied.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.families.family import Family
from leveret.model.lora import LoraLinear, LoraSettings, lora_modules
from leveret.model.lora_rules import shortest_targets
from leveret.model.lora_targets import linears_by_stored_name
from leveret.model.prefix import prefixes_of
from leveret.model.token_rows import TokenRows
from leveret.paths import atomic_write
from leveret.weights.adapter_layout import CONFIG, AdapterConfig
from leveret.weights.placing import stacked
from leveret.weights.prefix import prefix_files

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FINGERPRINT = "base_fingerprint"
"""Key in the metadata of the tensor file."""

A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
ROWS, WHOLE = "token_adapter.trainable_tokens_delta", "weight"
SUFFIXES = (A, B, MAGNITUDE, ROWS, WHOLE)


def save_adapter(
    model: Decoder,
    folder: str | Path,
    *,
    base: str | None,
    fingerprint: str | None = None,
    saved_modules: Sequence[str] = (),
) -> None:
    """Write what was trained of `model`, in the dtype it has.

    base: the model underneath, as others find it. fingerprint: of its files (`weights/fingerprint.py`).
    saved_modules: those trained whole, by their names in the files.
    """
    tensors, config = prefix_files(model, base) if prefixes_of(model) else _lora_files(model, base, saved_modules)
    directory = Path(folder)
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | ({FINGERPRINT: fingerprint} if fingerprint else {})
    atomic_write(directory / TENSORS, _in_one_order(save(tensors, metadata=metadata)))
    atomic_write(directory / CONFIG, config)


def _lora_files(model: Decoder, base: str | None, saved_modules: Sequence[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors and the config of what is not a prefix."""
    family = family_for(model.config.family)
    tensors: dict[str, Tensor] = {}
    settings: dict[str, LoraSettings] = {}
    there = linears_by_stored_name(model)
    for stored, ours in there.items():
        parts = [model.get_submodule(name) for name in ours]
        if isinstance(parts[0], LoraLinear):
            settings[stored] = _plainly_scaled(parts[0].settings) if model.config.moe else parts[0].settings
            tensors |= _of_one_matrix(stored, [part for part in parts if isinstance(part, LoraLinear)])
    if model.config.moe and any(".mlp." in there[stored][0] for stored in settings):
        settings = {stored: replace(one, dropout=0.0) for stored, one in settings.items()}
    token_ids: dict[str, tuple[int, ...]] = {}
    for name in ("embed_tokens", "lm_head"):
        table = model.get_submodule(name)
        if isinstance(table, TokenRows):
            token_ids[name] = tuple(table.token_ids.tolist())
            if name == "embed_tokens" or not model.config.tie_word_embeddings:
                tensors[f"{PREFIX}{family.stored_module(name)}.{ROWS}"] = _plain(table.rows)
    whole = _with_both_of_tied(model, family, saved_modules)
    saved = {family.whole_module(stored): stored for stored in whole}
    tensors |= {f"{PREFIX}{name}.{WHOLE}": _whole(model, family, stored) for name, stored in saved.items()}
    config = _described(settings, there, base=base, modules_to_save=list(saved), token_ids=token_ids)
    config = replace(config, ties_saved=model.config.tie_word_embeddings and "lm_head" in whole)
    return tensors, config.to_json()


def unfit_for_peft(model: Decoder) -> str | None:
    """What of a mixture's adapter peft cannot load, in words: it has the experts of a layer as two tensors."""
    changed = {name: module.settings for name, module in lora_modules(model).items()}
    if model.config.moe is None:
        return None
    if any(settings.dora and ".mlp." in name for name, settings in changed.items()):
        return "DoRA on experts or routers"
    for layer in range(model.config.num_hidden_layers):
        found = Counter(name.rpartition(".")[2] for name in changed if name.startswith(f"layers.{layer}.mlp.experts."))
        in_all = set(found.values()) <= {model.config.moe.num_experts}
        if not in_all or set(found) not in (set(), {"down_proj"}, {"gate_proj", "up_proj", "down_proj"}):
            return "a LoRA on some matrices of experts only (it knows all of w1, w2 and w3, or all of w2)"
    return None


def _plainly_scaled(settings: LoraSettings) -> LoraSettings:
    """The same factor as alpha / rank. peft joins w1 and w3 of an expert with twice the rank and twice alpha, which
    keeps alpha / rank and not alpha / sqrt(rank)."""
    return replace(settings, alpha=settings.scale * settings.rank, rslora=False) if settings.rslora else settings


def _of_one_matrix(stored: str, parts: list[LoraLinear]) -> dict[str, Tensor]:
    tensors = {A: parts[0].lora_A, B: torch.cat([part.lora_B.detach() for part in parts])}
    lengths = [part.magnitude.detach() for part in parts if part.magnitude is not None]
    if lengths:
        tensors[MAGNITUDE] = torch.cat(lengths)
    return {f"{PREFIX}{stored}.{suffix}": _plain(tensor) for suffix, tensor in tensors.items()}


def _in_one_order(content: bytes) -> bytes:
    """A safetensors file with a sorted header: the library writes metadata in any order, and hashes would differ."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _whole(model: Decoder, family: Family, stored: str) -> Tensor:
    parts = [model.get_parameter(name) for name in family.our_names(f"{stored}.weight")]
    return _plain(stacked(f"{stored}.weight", [part.detach() for part in parts]))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").clone().contiguous()


def _with_both_of_tied(model: Decoder, family: Family, modules: Sequence[str]) -> list[str]:
    pair = {family.stored_module("embed_tokens"), family.stored_module("lm_head")}
    if model.config.tie_word_embeddings and pair & set(modules):
        return sorted({*modules, *pair})
    return sorted(modules)


def _described(
    settings: dict[str, LoraSettings], there: dict[str, tuple[str, ...]], *, base: str | None,
    modules_to_save: list[str], token_ids: dict[str, tuple[int, ...]],
) -> AdapterConfig:  # fmt: skip
    """The most common settings, and the exceptions."""
    usual = Counter(settings.values()).most_common(1)[0][0]
    return AdapterConfig(
        lora=usual,
        targets=tuple(shortest_targets(there, list(settings))),
        base=base,
        ranks={re.escape(name): one.rank for name, one in settings.items() if one.rank != usual.rank},
        alphas={re.escape(name): one.alpha for name, one in settings.items() if one.alpha != usual.alpha},
        modules_to_save=tuple(modules_to_save),
        token_ids=token_ids,
    )
