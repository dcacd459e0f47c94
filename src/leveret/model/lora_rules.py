"""Which Linears of a model get an adapter: a rule over names, read as peft reads it.

    all-linear                   every Linear but the output matrix and the routers of experts
    [q_proj, v_proj]             names, or endings of names at a dot
    '.*\\.[0-3]\\.mlp\\..*_proj'    one regular expression for whole names

Names are those of the files (`model.layers.0.self_attn.q_proj`), which transformers and peft show; where they keep
several of our Linears in one matrix (`qkv_proj`), that matrix is one target. Our own names of experts (`up_proj` for
Mixtral's `w3`) are understood as well.

`Matrices` maps each name in the files to our names of what it holds. It comes from a model (lora_targets.py), or
without one from its config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from leveret.config import suggest
from leveret.errors import ConfigError
from leveret.model.config import ModelConfig
from leveret.model.families import family_for

ALL_LINEAR = "all-linear"
LEFT_OUT = ("lm_head", "gate", "router")
"""Last parts of names that `all-linear` leaves out."""

Targets = str | Sequence[str]
Matrices = dict[str, tuple[str, ...]]


def match_targets(there: Matrices, targets: Targets) -> list[str]:
    """The stored names that `targets` chooses, in the model's order."""
    if targets == ALL_LINEAR:
        return [stored for stored in there if stored.rpartition(".")[2] not in LEFT_OUT]
    if isinstance(targets, str):
        return _matching(there, targets)
    found: set[str] = set()
    for target in targets:
        matched = {stored for stored, ours in there.items() if ends(stored, target) or _is_ours(ours, target)}
        if not matched:
            raise _nothing(there, target)
        found |= matched
    if not found:
        raise ConfigError("the adapter has no targets", hint=f"write {ALL_LINEAR}, or names: {listed(there)}")
    return [stored for stored in there if stored in found]


def shortest_targets(there: Matrices, chosen: Sequence[str]) -> list[str]:
    """The shortest names that say the same to `match_targets` and to peft: endings, where all such are chosen."""
    names: set[str] = set()
    for stored in chosen:
        ending = stored.rpartition(".")[2]
        whole = all(other in chosen for other in there if ends(other, ending))
        names.add(ending if whole else stored)
    return sorted(names)


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every matrix in the files of a model of this config, by its module's name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    block = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
    layer = {"self_attn.q_proj": (hidden, queries), "self_attn.k_proj": (hidden, keys),
             "self_attn.v_proj": (hidden, keys), "self_attn.o_proj": (queries, hidden)}  # fmt: skip
    if config.moe is None:
        layer |= {f"mlp.{name}": shape for name, shape in block.items()}
    else:
        layer["mlp.gate"] = (hidden, config.moe.num_experts)
        for expert in range(config.moe.num_experts):
            layer |= {f"mlp.experts.{expert}.{name}": shape for name, shape in block.items()}
    ours = {f"layers.{n}.{name}": shape for n in range(config.num_hidden_layers) for name, shape in layer.items()}
    family, stored = family_for(config.family), dict[str, tuple[int, int]]()
    for name, (inputs, outputs) in (ours | {"lm_head": (hidden, config.vocab_size)}).items():
        whole = family.stored_module(name)
        stored[whole] = (inputs, stored.get(whole, (0, 0))[1] + outputs)
    return stored


def matrix(stored: str, config_family: str) -> tuple[str, ...]:
    """Our names of the Linears that a matrix of the files holds, in order."""
    names = family_for(config_family).our_names(f"{stored}.weight")
    return tuple(name.removesuffix(".weight") for name in names)


def _matching(there: Matrices, pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"targets {pattern!r} is no regular expression: {error}",
                          hint=f"write {ALL_LINEAR}, or a list of names: {listed(there)}") from error  # fmt: skip
    found = [stored for stored in there if compiled.fullmatch(stored)]
    if not found and (near := suggest(pattern, _endings(there))):
        raise ConfigError(
            f"targets {pattern!r} is one regular expression for whole names, such as {next(iter(there))}, and fits "
            f"none; there are {listed(there)}",
            hint=f"names are written as a list: [{near}]",
        )
    if not found:
        raise _nothing(there, pattern)
    return found


def _nothing(there: Matrices, target: str) -> ConfigError:
    near = suggest(target, _endings(there))
    return ConfigError(
        f"no Linear of the model is called {target!r}; there are {listed(there)}",
        hint=f"did you mean {near}?" if near else "name some of these, a regular expression in quotes for whole names "
        f"such as {next(iter(there))}, or {ALL_LINEAR}",
    )  # fmt: skip


def listed(there: Iterable[str]) -> str:
    """The endings of names, for people."""
    return ", ".join(_endings(there))


def _endings(there: Iterable[str]) -> list[str]:
    return sorted({stored.rpartition(".")[2] for stored in there})


def ends(name: str, ending: str) -> bool:
    """Whether `ending` is `name`, or what stands behind one of its dots."""
    return name == ending or name.endswith(f".{ending}")


def _is_ours(ours: tuple[str, ...], target: str) -> bool:
    """Whether `target` is our name of an unfused Linear."""
    return len(ours) == 1 and ends(ours[0], target)
