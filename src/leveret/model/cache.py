"""The KV cache: keys and values of the tokens a model has read, so that the next token costs one column of attention.

Slot = position: token p of row b lies in slot p of row b. A forward of T tokens writes slots
`lengths[b] .. lengths[b] + T - 1` and then adds T to every length. After a prefill of right-padded rows the caller sets
`lengths` to the true ones; the padding left behind is never read (it lies later than every query) and is overwritten by
the next tokens. `lengths` is on the CPU on every machine: the shapes of a step are decided there.

No gradient flows through a cache, and a sliding window saves time, not memory: old slots stay, unread.

Shape legend: B rows, K key-value heads, C capacity, T new tokens, S slots read, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leveret.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Where one forward writes and what it reads; made by `KVCache.reserve`, used by every layer."""

    starts: list[int]
    """First slot written, per row."""
    num_tokens: int
    """T, slots written per row."""
    first: int
    """First slot that any query of this forward can see."""
    end: int
    """One past the last slot that any query can see."""
    positions: Tensor
    """Positions of the new tokens, (B, T), or (1, T) when all rows are equally long."""

    @property
    def uniform(self) -> bool:
        """All rows have the same length."""
        return self.positions.shape[0] == 1


class KVCache:
    """Room for `capacity` tokens in each of `batch_size` rows, empty at first."""

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch_size, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.window = config.sliding_window
        self.capacity = capacity
        self.lengths = torch.zeros(batch_size, dtype=torch.long)
        """Tokens held, (B,), on the CPU. Assign true lengths here after a right-padded prefill."""
        self.planned_lengths = torch.full((batch_size,), capacity, dtype=torch.long)
        """The length each row is to reach, (B,); fixes the base of dynamic NTK (`rope.py`), which must not drift."""

    def reserve(self, num_tokens: int) -> Slots:
        """Decide where the next `num_tokens` of every row go. `advance` afterwards makes it so."""
        starts: list[int] = self.lengths.tolist()
        earliest, latest = min(starts), max(starts)
        end = latest + num_tokens
        assert end <= self.capacity, f"{end} tokens do not fit a cache of {self.capacity}: make it larger beforehand"
        offsets = torch.arange(num_tokens)
        base = self.lengths[:1] if earliest == latest else self.lengths
        positions = (base.unsqueeze(1) + offsets).to(self.keys[0].device)
        first = 0 if self.window is None else max(0, earliest - self.window + 1)
        return Slots(starts=starts, num_tokens=num_tokens, first=first, end=end, positions=positions)

    def append(self, layer: int, key: Tensor, value: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
        """Write one layer's new key and value (B, K, T, D); return all that the queries may see, (B, K, S, D)."""
        keys, values = self.keys[layer], self.values[layer]
        if slots.uniform:
            start = slots.starts[0]
            keys[:, :, start : slots.end] = key.detach()
            values[:, :, start : slots.end] = value.detach()
        else:
            rows = torch.arange(len(slots.starts), device=keys.device).unsqueeze(1)
            keys[rows, :, slots.positions] = key.detach().transpose(1, 2)  # (B, T, K, D)
            values[rows, :, slots.positions] = value.detach().transpose(1, 2)
        return keys[:, :, slots.first : slots.end], values[:, :, slots.first : slots.end]

    def advance(self, num_tokens: int) -> None:
        """All rows have become `num_tokens` longer."""
        self.lengths = self.lengths + num_tokens

    def truncate(self, lengths: Tensor) -> None:
        """Forget everything from `lengths` (B,) on; rows that are shorter already stay as they are."""
        self.lengths = torch.minimum(self.lengths, lengths.to(self.lengths))

    def select_rows(self, indices: Tensor | list[int]) -> None:
        """Keep these rows, in this order; a row may be taken more than once."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        self.lengths, self.planned_lengths = self.lengths[chosen], self.planned_lengths[chosen]
        on_device = chosen.to(self.keys[0].device)
        self.keys = [keys.index_select(0, on_device) for keys in self.keys]
        self.values = [values.index_select(0, on_device) for values in self.values]
