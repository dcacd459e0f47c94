"""A model's tensors, from wherever they are stored, written as the tensor files of a model directory, block by block.

In memory is one block, whatever the model's size (of a GGUF file, one matrix of q or k). Each value is read once and
written once; how many of them the new dtype could not hold exactly is counted. Write into the draft of an
`atomic_directory`: half a model then never has a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from leveret.errors import StorageError, WeightsError
from leveret.model.families.family import Family
from leveret.paths import free_bytes
from leveret.weights.model_tensors import ModelTensors, shapes_of
from leveret.weights.placing import file_name
from leveret.weights.save import SHARD_BYTES
from leveret.weights.writer import WeightWriter

Progress = Callable[[int, int], None]
"""Called with (tensors done, tensors in all)."""


@dataclass(kw_only=True)
class Rewritten:
    """What was written, and what the change of dtype cost."""

    tensors: int = 0
    values: int = 0
    bytes: int = 0
    rounded: dict[str, int] = field(default_factory=dict)
    """Our names of tensors with values that the new dtype does not have, and how many."""

    @property
    def exact(self) -> bool:
        """Whether every value is as it was."""
        return not self.rounded

    def line(self) -> str:
        """The cost in a sentence."""
        if self.exact:
            return f"all {self.values:,} values are as they were"
        count = sum(self.rounded.values())
        return f"{count:,} of {self.values:,} values were rounded, in {len(self.rounded):,} of {self.tensors:,} tensors"


def write_tensors(
    source: ModelTensors,
    family: Family,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Rewritten:
    """Write all tensors of `source` under the names of `family`.

    dtype: None: each as it is read. WeightsError names a tensor with values that are no numbers, or too large for it.
    """
    shapes, dtypes = shapes_of(source.config), source.dtypes
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(file_name(family, name), []).append(name)
    layout = {}
    for stored, names in groups.items():
        ours = [name for name in family.our_names(stored)]
        assert set(ours) == set(names), (stored, names)
        groups[stored] = ours
        rows = sum(shapes[name][0] for name in ours)
        layout[stored] = (dtype or dtypes[ours[0]], (rows, *shapes[ours[0]][1:]))
    _require_room(directory, sum(kind.itemsize * math.prod(shape) for kind, shape in layout.values()))
    report = Rewritten(tensors=len(shapes))
    with WeightWriter(directory, layout, shard_bytes=shard_bytes) as writer:
        for stored, names in groups.items():
            begin = 0
            for name in names:
                for start, values in source.blocks(name):
                    writer.write(stored, begin + start, _cast(name, values, layout[stored][0], report))
                begin += math.prod(shapes[name])
                report.values += math.prod(shapes[name])
            if progress is not None:
                progress(list(groups).index(stored) + 1, len(groups))
        report.bytes = writer.total_bytes
    return report


def converted(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in `dtype`. WeightsError names a tensor with values that are no numbers, or too large for it."""
    refuse_infinite(name, values)
    if values.dtype == dtype:
        return values
    changed = values.to(dtype)
    if not torch.isfinite(changed).all():
        raise WeightsError(f"{name} has values beyond the largest of {str(dtype).removeprefix('torch.')}, "
                           f"{torch.finfo(dtype).max:g}", hint="choose bfloat16 or float32")  # fmt: skip
    return changed


def refuse_infinite(name: str, values: Tensor) -> None:
    """WeightsError when values of a tensor are infinite or no numbers."""
    if not torch.isfinite(values).all():
        count = int((~torch.isfinite(values)).sum())
        raise WeightsError(f"{name} holds {count:,} values that are infinite or no numbers",
                           hint="the file is damaged, or the training that wrote it had failed")  # fmt: skip


def _cast(name: str, values: Tensor, dtype: torch.dtype, report: Rewritten) -> Tensor:
    changed = converted(name, values, dtype)
    if changed.dtype == values.dtype:
        return changed
    if rounded := int((changed.to(values.dtype) != values).sum()):
        report.rounded[name] = report.rounded.get(name, 0) + rounded
    return changed


def _require_room(directory: Path, needed: int) -> None:
    if (free := free_bytes(directory)) < needed:
        raise StorageError(f"{directory.parent}: the model takes {needed / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free",
                           hint="free some space, choose another place, or a smaller dtype")  # fmt: skip
