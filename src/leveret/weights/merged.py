"""An adapter merged into the matrices it changes: W' = W + s B A, added in float32 and rounded once to W's dtype.

The result is an ordinary model, as fast as before and readable everywhere. What it costs is that one rounding: bfloat16
has 8 bits of mantissa, and of a change that is smaller than 1/512 of the weight it is added to, nothing may be left. So
each merge says how much of each change was lost:

    lost = | round(W + D) - (W + D) | / | D |          D = s B A, lengths over the whole matrix

A few percent are usual and harmless, for the errors point everywhere; near 1 the merged model is the old one, and the
adapter should be kept apart, or merged in float32. The model underneath must be in full precision: merging into 4-bit
weights would round the change away, and writing those out first would merge into another model than the one released.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from leveret.errors import ConfigError
from leveret.hub import model_under, resolve_model
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.linear import is_dense
from leveret.model.lora import LoraLinear, lora_modules
from leveret.model.prefix import prefixes_of
from leveret.model.token_rows import fold_rows
from leveret.paths import atomic_directory, require_outside
from leveret.weights.adapter_load import load_adapter
from leveret.weights.companions import copy_over
from leveret.weights.fingerprint import fingerprint_of
from leveret.weights.load import load_model
from leveret.weights.save import save_model


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What rounding cost."""

    dtype: str
    """Of the merged matrices."""
    lost: Mapping[str, float]
    """The part of each matrix's change that is gone, by its name in the files."""

    def line(self) -> str:
        """All in one line."""
        ordered = sorted(self.lost, key=lambda name: self.lost[name])
        middle, worst = ordered[len(ordered) // 2], ordered[-1]
        return (
            f"merged {len(ordered)} matrices in {self.dtype}: rounding lost {self.lost[middle]:.2%} of a change in the "
            f"middle, at most {self.lost[worst]:.2%} ({worst})"
        )


@torch.no_grad()
def merge_adapter(model: Decoder) -> MergeReport:
    """Merge the LoraLinears and the trained rows of `model` into it, in place."""
    if prefixes_of(model):
        raise ConfigError("a prefix cannot be merged: no matrix of a model can stand for it",
                          hint="load the adapter's folder, or train a LoRA")  # fmt: skip
    family = family_for(model.config.family)
    lost: dict[str, float] = {}
    changed = lora_modules(model)
    if "lm_head" in changed:  # it alone: where it was the embedding, the two are different tables from now on
        model.config = replace(model.config, tie_word_embeddings=False)
    for name, module in changed.items():
        if not is_dense(module.base):
            raise ConfigError(
                f"{name} is quantized; a change merged into {type(module.base).__name__} would be rounded away",
                hint="merge into the model it was quantized from, or keep the adapter apart",
            )
        stored = family.stored_module(name)
        lost[stored] = max(_merge(module), lost.get(stored, 0.0))
        model.set_submodule(name, module.base)
    fold_rows(model)
    return MergeReport(dtype=str(model.norm.weight.dtype).removeprefix("torch."), lost=lost)


def load_merged(
    adapter: str | Path, *, base: str | Path | None = None, dtype: torch.dtype | str | None = None
) -> tuple[Decoder, MergeReport]:
    """The model under an adapter with the adapter merged in, in `dtype` or as stored.

    base: merge into this one instead of the one that the adapter names.
    """
    folder = resolve_model(adapter)
    under = model_under(folder) if base is None else resolve_model(base)
    model = load_model(under, dtype=dtype)
    load_adapter(model, folder, fingerprint=fingerprint_of(under), rounded=False)
    return model, merge_adapter(model)


def merge_into_model(
    adapter: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
) -> MergeReport:
    """Write the merged model as a folder of its own, with tokenizer, template and tools; see `load_merged`."""
    folder = resolve_model(adapter)
    under = model_under(folder) if base is None else resolve_model(base)
    require_outside(output, folder, under)
    model, report = load_merged(folder, base=under, dtype=dtype)
    with atomic_directory(Path(output)) as draft:
        save_model(model, draft)
        copy_over((folder, under), draft)
    return report


def _merge(module: LoraLinear) -> float:
    """Merge one, without touching another table that its weight may be too; the part of its change that is gone."""
    before: Tensor = module.base.weight  # type: ignore[assignment]
    wanted = module.merged_weight()
    merged = wanted.to(before.dtype)
    module.base.weight = nn.Parameter(merged, requires_grad=before.requires_grad)
    change = (wanted - before.float()).norm()
    return float((merged.float() - wanted).norm() / change) if change > 0 else 0.0
