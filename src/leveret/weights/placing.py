"""Between a file's tensors and a model's: fused ones are split on the way in and stacked on the way out.

Both directions go through the family's weight-name table. Accounting is strict: each of the model's tensors is filled
exactly once, and a tensor of the file that has no place is an error. A model with a forgotten tensor still answers,
wrongly, which is why nothing here is lenient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from leveret.errors import MissingWeights, ShapeMismatch, UnexpectedWeights, WeightsError
from leveret.model.decoder import Decoder
from leveret.model.families.family import Family
from leveret.weights.safetensors import name_some

RECOMPUTED = (".rotary_emb.inv_freq",)
"""Endings of tensors that old files carry and every model computes itself."""

OUTPUT_AXIS = {"weight": 0, "bias": 0, "qweight": 1, "qzeros": 1, "scales": 1}
"""Along which axis a tensor of this suffix counts outputs, so along which fused modules are stacked."""

SHARED_SUFFIXES = ("g_idx",)
"""Suffixes that describe the inputs: fused modules share one tensor."""

ANY_SHAPE = ("weight_quant_state",)
"""Suffixes of tensors whose length only the file knows."""

_PARTS_OF_WEIGHT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4")
_DOTTED = {f".weight_{part.partition('.')[0]}": f".weight.{part}" for part in _PARTS_OF_WEIGHT}
"""Endings of our names -> those of the files, for the parts of a weight in NF4: a module's buffer can have no dot."""

HEAD = "lm_head.weight"

NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types that hold a weight by themselves. Whole numbers, and floats of 8 bits, mean nothing without their scales."""


def match_names(model: Decoder, family: Family, stored: Iterable[str], place: Path) -> dict[str, tuple[str, ...]]:
    """For each of the tensors in `place`, our names for what it holds.

    MissingWeights and UnexpectedWeights name what does not fit, in the file's spelling. A tied head may be absent.
    """
    wanted = set(model.state_dict())
    tied = model.config.tie_word_embeddings
    held: dict[str, tuple[str, ...]] = {}
    holder: dict[str, str] = {}
    strange = set()
    for name in stored:
        if name.endswith(RECOMPUTED):
            continue
        ours = family.our_names(_without_dots(name))
        if not ours or not set(ours) <= wanted:
            strange.add(name)
            continue
        for part in ours:
            if part in holder:
                raise UnexpectedWeights(f"{holder[part]} and {name} both hold {part}", hint="remove one of the two")
            holder[part] = name
        held[name] = ours
    missing = {file_name(family, name) for name in wanted - set(holder) if not (tied and name == HEAD)}
    if missing:
        untied = missing == {HEAD}
        raise MissingWeights(
            f"{len(missing)} of the tensors the config asks for are not in {place}: {name_some(missing)}"
            + (f"; {len(strange)} others have no place: {name_some(strange)}" if strange else ""),
            hint='if the head is the embedding, set "tie_word_embeddings": true in config.json' if untied
            else "do config.json and the weights belong together?",
        )  # fmt: skip
    if strange:
        raise UnexpectedWeights(
            f"{len(strange)} tensors of {place} have no place in a {family.name} model: {name_some(strange)}",
            hint="do config.json and the weights belong together? nothing is left out silently",
        )
    return held


def split(stored: Tensor, ours: tuple[str, ...], shapes: Mapping[str, torch.Size], *, label: str) -> dict[str, Tensor]:
    """The parts of a file's tensor by our names, each of the shape the model has; ShapeMismatch names `label`."""
    suffix = ours[0].rpartition(".")[2]
    if len(ours) == 1 or suffix in SHARED_SUFFIXES:
        parts = {name: stored for name in ours}
    else:
        axis = OUTPUT_AXIS[suffix]
        sizes = [shapes[name][axis] for name in ours]
        whole = list(shapes[ours[0]])
        whole[axis] = sum(sizes)
        _require_shape(stored, torch.Size(whole), label)
        parts = dict(zip(ours, torch.split(stored, sizes, dim=axis), strict=True))
    for name, part in parts.items():
        if suffix not in ANY_SHAPE:
            _require_shape(part, shapes[name], label)
    return parts


def fuse(model: Decoder, family: Family) -> dict[str, list[Tensor]]:
    """All tensors to be written, by the file's names: one, or several to be stacked. A tied head is left out."""
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        del tensors[HEAD]
    grouped: dict[str, list[Tensor]] = {}
    for name in tensors:
        stored = file_name(family, name)
        if stored not in grouped:
            grouped[stored] = [tensors[part] for part in family.our_names(_without_dots(stored))]
    return grouped


def file_name(family: Family, ours: str) -> str:
    """The file's name of one of our tensors."""
    stored = family.stored_name(ours)
    for flat, dotted in _DOTTED.items():
        if stored.endswith(flat):
            return stored.removesuffix(flat) + dotted
    return stored


def _without_dots(stored: str) -> str:
    for flat, dotted in _DOTTED.items():
        if stored.endswith(dotted):
            return stored.removesuffix(dotted) + flat
    return stored


def stacked(name: str, parts: list[Tensor]) -> Tensor:
    """One contiguous CPU tensor from what `fuse` grouped."""
    suffix = name.rpartition(".")[2]
    if len(parts) == 1:
        whole = parts[0]
    elif suffix in SHARED_SUFFIXES:
        assert all(torch.equal(part, parts[0]) for part in parts), f"the parts of {name} differ in their input order"
        whole = parts[0]
    else:
        whole = torch.cat(parts, dim=OUTPUT_AXIS[suffix])
    return whole.detach().to("cpu").contiguous()


def require_numbers(dtype: torch.dtype, label: str) -> None:
    """WeightsError if a weight that nothing declares quantized is stored in a type that is read with scales."""
    if dtype not in NUMBERS:
        raise WeightsError(
            f"{label} is stored as {_name(dtype)}, which is no weight without scales, and config.json declares none",
            hint=f"take the model's release in {', '.join(_name(kind) for kind in NUMBERS[:3])}",
        )


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of the model's parameter or buffer called `name`."""
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    old = getattr(module, attribute)
    value = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    setattr(module, attribute, value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _require_shape(tensor: Tensor, shape: torch.Size, label: str) -> None:
    if tensor.shape != shape:
        raise ShapeMismatch(
            f"{label} has shape {tuple(tensor.shape)}, the config asks for {tuple(shape)}",
            hint="config.json (vocab_size, hidden_size, heads ...) and the weights do not belong together",
        )
