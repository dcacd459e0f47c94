"""Which Linears of a model get an adapter: a rule, read as peft reads it.

    all-linear                   every Linear but the output matrix and the routers of experts
    [q_proj, v_proj]             names, or endings of names at a dot
    '.*\\.[0-3]\\.mlp\\..*_proj'    one regular expression for whole names

Names are those of the files (`model.layers.0.self_attn.q_proj`), which transformers and peft show; where they keep
several of our Linears in one matrix (`qkv_proj`), that matrix is one target. Our own names of experts (`up_proj` for
Mixtral's `w3`) are understood as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from leveret.config import suggest
from leveret.errors import ConfigError
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.lora import LoraLinear, LoraSettings, init_lora, wrap
from leveret.model.token_rows import TokenRows

ALL_LINEAR = "all-linear"
LEFT_OUT = ("lm_head", "gate", "router")
"""Last parts of names that `all-linear` leaves out."""

Targets = str | Sequence[str]


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


def linears_by_stored_name(model: Decoder) -> dict[str, tuple[str, ...]]:
    """For each matrix of the files, by its module's name there, our Linears that make it up, in order."""
    family = family_for(model.config.family)
    parts: dict[str, tuple[str, ...]] = {}
    for name, module in model.named_modules():
        if _is_linear(module) and not _is_inside_another(model, name):
            stored = family.stored_module(name)
            ours = tuple(part.removesuffix(".weight") for part in family.our_names(f"{stored}.weight"))
            parts.setdefault(stored, ours)
    return parts


def match_targets(there: dict[str, tuple[str, ...]], targets: Targets) -> list[str]:
    """The stored names that `targets` chooses, in the model's order."""
    if targets == ALL_LINEAR:
        return [stored for stored in there if stored.rpartition(".")[2] not in LEFT_OUT]
    if isinstance(targets, str):
        return _matching(there, targets)
    found: set[str] = set()
    for target in targets:
        matched = {stored for stored, ours in there.items() if _ends(stored, target) or _is_ours(ours, target)}
        if not matched:
            raise _nothing(there, target)
        found |= matched
    if not found:
        raise ConfigError("the adapter has no targets", hint=f"write {ALL_LINEAR}, or names: {_names(there)}")
    return [stored for stored in there if stored in found]


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
        found = [stored for stored in there if _ends(stored, wanted)]
        if not found:
            taken = any(_ends(stored, wanted) for stored in linears_by_stored_name(model))
            raise ConfigError(
                f"modules_to_save names {wanted!r}, which " + ("has an adapter already" if taken else "is not there"),
                hint=f"there are {_names(there)}",
            )
        chosen += found
    for stored in chosen:
        for module in there[stored]:
            module.requires_grad_(True)
            for parameter in module.parameters():
                parameter.data = parameter.data.float()
    return list(dict.fromkeys(chosen))


def shortest_targets(there: dict[str, tuple[str, ...]], chosen: Sequence[str]) -> list[str]:
    """The shortest names that say the same to `match_targets` and to peft: endings, where all such are chosen."""
    names: set[str] = set()
    for stored in chosen:
        ending = stored.rpartition(".")[2]
        whole = all(other in chosen for other in there if _ends(other, ending))
        names.add(ending if whole else stored)
    return sorted(names)


def _matching(there: dict[str, tuple[str, ...]], pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"targets {pattern!r} is no regular expression: {error}",
                          hint=f"write {ALL_LINEAR}, or a list of names: {_names(there)}") from error  # fmt: skip
    found = [stored for stored in there if compiled.fullmatch(stored)]
    if not found:
        raise _nothing(there, pattern)
    return found


def _nothing(there: dict[str, tuple[str, ...]], target: str) -> ConfigError:
    near = suggest(target, sorted({stored.rpartition(".")[2] for stored in there}))
    return ConfigError(
        f"no Linear of the model is called {target!r}; there are {_names(there)}",
        hint=f"did you mean {near}?" if near else "name some of these, a regular expression in quotes for whole names "
        f"such as {next(iter(there))}, or {ALL_LINEAR}",
    )  # fmt: skip


def _names(there: Iterable[str]) -> str:
    return ", ".join(sorted({stored.rpartition(".")[2] for stored in there}))


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _is_ours(ours: tuple[str, ...], target: str) -> bool:
    """Whether `target` is our name of an unfused Linear."""
    return len(ours) == 1 and _ends(ours[0], target)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, LoraLinear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def _is_inside_another(model: nn.Module, name: str) -> bool:
    """Whether it is a part of a wrapped Linear or table."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), LoraLinear | TokenRows)
