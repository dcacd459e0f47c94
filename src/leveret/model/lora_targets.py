"""Adapters and modules that are trained whole, put on a model by the rules of lora_rules.py."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from leveret.errors import ConfigError
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.lora import LoraLinear, LoraSettings, init_lora, wrap
from leveret.model.lora_rules import Matrices, Targets, ends, listed, match_targets, matrix
from leveret.model.token_rows import TokenRows


def add_lora(model: Decoder, settings: LoraSettings, targets: Targets, *, seed: int) -> list[str]:
    """Freeze `model` and put adapters on the Linears that `targets` names; returns their names in the files.

    ConfigError when a name matches nothing (it lists those there are).
    """
    there = linears_by_stored_name(model)
    chosen = match_targets(there, targets)
    model.requires_grad_(False)
    for stored in chosen:
        init_lora(stored, wrap(model, there[stored], settings), seed=seed)
    return chosen


def linears_by_stored_name(model: Decoder) -> Matrices:
    """For each matrix of the files, by its module's name there, our Linears that make it up, in order."""
    family = family_for(model.config.family)
    parts: Matrices = {}
    for name, module in model.named_modules():
        if _is_linear(module) and not _is_inside_another(model, name):
            stored = family.stored_module(name)
            parts.setdefault(stored, matrix(stored, model.config.family))
    return parts


def train_whole(model: Decoder, names: Sequence[str]) -> list[str]:
    """Let modules be trained themselves, in float32, by the ends of their names in the files; returns those names.

    Where the head is the embedding, naming either trains the one table that both are. ConfigError when a name matches
    nothing, or a matrix that has an adapter.
    """
    family = family_for(model.config.family)
    there: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module._parameters.get("weight"), nn.Parameter) and not _is_inside_another(model, name):
            there.setdefault(family.stored_module(name), []).append(module)
    chosen: list[str] = []
    for wanted in names:
        found = [stored for stored in there if ends(stored, wanted)]
        if not found:
            raise ConfigError(
                f"modules_to_save names {wanted!r}, which {_why_not_there(model, wanted)}",
                hint=f"there are {listed(there)}",
            )
        chosen += found
    for stored in chosen:
        for module in there[stored]:
            module.requires_grad_(True)
            for parameter in module.parameters():
                parameter.data = parameter.data.float()
    return list(dict.fromkeys(chosen))


def _why_not_there(model: Decoder, wanted: str) -> str:
    """Why a module cannot be trained whole."""
    for stored, ours in linears_by_stored_name(model).items():
        if ends(stored, wanted):
            adapted = isinstance(model.get_submodule(ours[0]), LoraLinear)
            return "has an adapter already" if adapted else "is quantized, so only an adapter can be trained on it"
    return "is not there"


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, LoraLinear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def _is_inside_another(model: nn.Module, name: str) -> bool:
    """Whether it is a part of a wrapped Linear or table."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), LoraLinear | TokenRows)
