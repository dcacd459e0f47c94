"""One new token of every row through all layers of a decoder, by one compiled call.

What it computes is what the decoder's modules compute one after the other (the twin: `Decoder.hidden` with a cache),
rounded to bfloat16 in the same places. Weights may be plain bfloat16 matrices, the integers of `integer_product.py` or
NF4, each as it lies in memory; nothing is copied. Here are the tables of pointers that the call takes; which model has
them is said in `engine/step_parts.py`.

Shape legend: B rows, H hidden, D head width, K key-value heads, N blocks of the cache, C tokens of each, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.kernels.integer_product import TILE, CompiledWeight
from leveret.kernels.native.library import compiled, pointer, size
from leveret.kernels.normal_float import FourBitNumbers, FourBitTable, table_of

STEP = 32
"""What widths of heads and sizes of layers are multiples of."""


@dataclass(frozen=True, kw_only=True)
class FourBitMatrix:
    """A weight (outputs, inputs) in NF4, written out a little at a time."""

    numbers: FourBitNumbers
    out_features: int
    in_features: int


DecodeWeight = Tensor | CompiledWeight | FourBitMatrix
"""A Linear's weight: (outputs, inputs) in bfloat16, integers, or numbers that are looked up."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """What an adapter makes of a product with x: `(W x + scale * B (A x)) * factors`; made by `low_rank`."""

    down: Tensor
    """A: (rank, inputs)."""
    up: Tensor
    """B in tiles of outputs: (tiles, rank, TILE), zeros at the end."""
    scale: float
    factors: Tensor | None
    """Of each output (DoRA), float32, zeros at the end up to a whole tile; None: 1."""


def low_rank(a: Tensor, b: Tensor, scale: float, factors: Tensor | None = None) -> LowRank:
    """From A (rank, inputs) and B (outputs, rank) of any type, rounded to bfloat16, and factors (outputs,)."""
    room = -len(b) % TILE
    padded = F.pad(b.detach().to(torch.bfloat16), (0, 0, 0, room))
    up = padded.view(-1, TILE, b.shape[1]).transpose(1, 2).contiguous()
    by_output = None if factors is None else F.pad(factors.detach().float(), (0, room)).contiguous()
    return LowRank(down=a.detach().to(torch.bfloat16).contiguous(), up=up, scale=scale, factors=by_output)


@dataclass(frozen=True)
class DecodeLinear:
    """A Linear: its weight, and what the adapters of the models that share it add; None: nothing."""

    weight: DecodeWeight
    changes: tuple[LowRank | None, ...] = (None,)


@dataclass(frozen=True, kw_only=True)
class DecodeExpert:
    """A feed-forward block."""

    gate: DecodeLinear
    up: DecodeLinear
    down: DecodeLinear


@dataclass(frozen=True, kw_only=True)
class DecodeLayer:
    """The weights of one layer."""

    attention_norm: Tensor
    feed_forward_norm: Tensor
    query: DecodeLinear
    key: DecodeLinear
    value: DecodeLinear
    out: DecodeLinear
    experts: tuple[DecodeExpert, ...]
    """One, which every token visits, or several of a mixture, whose matrices are stored alike."""
    router: Tensor | None = None
    """Of a mixture: (experts, H)."""


@dataclass(frozen=True, kw_only=True)
class DecodeShape:
    """The numbers of a decoder that a step needs."""

    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    window: int | None
    eps: float
    scales_in_float32: bool
    """See model/norm.py."""
    experts_per_token: int


class _Change(ctypes.Structure):
    _fields_ = [
        ("rank", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("down", "up", "factors")),
        ("scale", ctypes.c_double),
    ]


class _Linear(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("bits", "inputs", "outputs", "columns", "group")),
        *((name, ctypes.c_void_p) for name in ("data", "scales", "zeros")),
        ("zero", ctypes.c_double),
        ("order", ctypes.c_void_p),
        ("rounds", ctypes.c_int64),
        ("numbers", ctypes.POINTER(FourBitTable)),
        ("changes", ctypes.POINTER(ctypes.POINTER(_Change))),
    ]


_LINEARS = ("query", "key", "value", "out")
_EXPERT = ("gate", "up", "down")
_NORMS = ("attention_norm", "feed_forward_norm")


class _Expert(ctypes.Structure):
    _fields_ = [(name, _Linear) for name in _EXPERT]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _NORMS),
        *((name, _Linear) for name in _LINEARS),
        ("router", ctypes.c_void_p),
        ("experts", ctypes.POINTER(_Expert)),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    ]


_SHAPE = ("layers", "hidden", "heads", "groups", "width", "intermediate", "window", "experts", "chosen")


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _SHAPE),
        ("eps", ctypes.c_double),
        ("rounds_before_scale", ctypes.c_int64),
    ]


class DecodeStep:
    """The tables of one model; holds its tensors, whose memory must stay where it is."""

    def __init__(
        self, shape: DecodeShape, layers: Sequence[DecodeLayer], *, last_norm: Tensor, head: DecodeWeight
    ) -> None:
        self._held = (tuple(layers), last_norm, head)
        self._tables: list[object] = []
        """What tables point to, which has to live as long as they do."""
        self._last_norm, self._head = pointer(last_norm), self._linear(DecodeLinear(head))
        self._shape = _Shape(
            layers=len(layers),
            hidden=shape.hidden_size,
            heads=shape.num_heads,
            groups=shape.num_key_value_heads,
            width=shape.head_dim,
            intermediate=shape.intermediate_size,
            window=shape.window or 0,
            experts=len(layers[0].experts),
            chosen=shape.experts_per_token,
            eps=shape.eps,
            rounds_before_scale=int(not shape.scales_in_float32),
        )
        self._layers = (_Layer * len(layers))()
        for table, layer in zip(self._layers, layers, strict=True):
            for name in _NORMS:
                setattr(table, name, getattr(layer, name).data_ptr())
            for name in _LINEARS:
                setattr(table, name, self._linear(getattr(layer, name)))
            experts = [_Expert(*(self._linear(getattr(each, name)) for name in _EXPERT)) for each in layer.experts]
            table.experts = (_Expert * len(experts))(*experts)
            table.router = None if layer.router is None else layer.router.data_ptr()
            self._tables.append(table.experts)

    def _linear(self, linear: DecodeLinear) -> _Linear:
        table = _table(linear.weight)
        if isinstance(linear.weight, FourBitMatrix):
            numbers = table_of(linear.weight.numbers)
            table.numbers = ctypes.pointer(numbers)
            self._tables.append(numbers)
        if any(change is not None for change in linear.changes):
            pointers = (ctypes.POINTER(_Change) * len(linear.changes))()
            for place, change in enumerate(linear.changes):
                if change is not None:
                    factors = None if change.factors is None else change.factors.data_ptr()
                    places = (change.down.data_ptr(), change.up.data_ptr(), factors)
                    pointers[place] = ctypes.pointer(_Change(len(change.down), *places, change.scale))
            table.changes = pointers
            self._tables.append(pointers)
        return table

    def __call__(
        self, x: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], tables: Tensor, positions: Sequence[int],
        cos: Tensor, signed_sin: Tensor, *, models: Sequence[int] | None = None, as_alone: bool = False,
    ) -> Tensor:  # fmt: skip
        """Embeddings of the new tokens (B, H), which are overwritten -> logits (B, V).

        keys, values: for each layer (N, K, C, D); token p of row b lies at p % C of block `tables[b, p // C]`.
        tables: (B, blocks) int64; a cache that is one piece for each row has C its capacity and one block for each.
        positions: where in its sequence each new token comes; rows may be several tokens of one sequence in a row.
        cos, signed_sin: (B, D). All bfloat16 and in one piece.
        models: (B,), whose changes each row gets, a place in `DecodeLinear.changes`; None: the first for all.
        as_alone: give each row, to the bit, what it would get in a call of its own; that is slower for many rows.
        """
        for table, layer_keys, layer_values in zip(self._layers, keys, values, strict=True):
            table.keys, table.values = layer_keys.data_ptr(), layer_values.data_ptr()
        library = compiled()
        block = keys[0].shape[2]
        assert library is not None and max(positions) < tables.shape[1] * block and tables.is_contiguous()
        logits = torch.empty((x.shape[0], self._head.columns), dtype=torch.bfloat16)
        library.leveret_decode_step(
            ctypes.byref(self._shape), self._layers, self._last_norm, ctypes.byref(self._head), pointer(x),
            size(x.shape[0]), (ctypes.c_int64 * len(positions))(*positions), pointer(tables), size(tables.shape[1]),
            size(block), (ctypes.c_int64 * len(positions))(*models or ()), pointer(cos), pointer(signed_sin),
            pointer(logits), size(int(as_alone)), torch.get_num_threads(),
        )  # fmt: skip
        return logits


def weight_refusal(weight: DecodeWeight) -> str | None:
    """Why a step cannot read such a weight; None when it can."""
    if isinstance(weight, CompiledWeight):
        in_order = weight.order is None or weight.activations == "int8"
        return None if in_order else "its columns are in another order"
    if isinstance(weight, FourBitMatrix):
        lies = weight.numbers.packed.device.type == "cpu" and weight.in_features % weight.numbers.block == 0
        return None if lies else f"its {weight.in_features} inputs are no whole blocks, or it is not on a CPU"
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not weight.is_contiguous():
        return f"it is {str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
    return None if weight.shape[1] % STEP == 0 else f"its {weight.shape[1]} inputs are no multiple of {STEP}"


def _table(weight: DecodeWeight) -> _Linear:
    if isinstance(weight, Tensor):
        outputs, inputs = weight.shape
        return _Linear(bits=16, inputs=inputs, outputs=outputs, columns=outputs, group=inputs, data=weight.data_ptr())
    if isinstance(weight, FourBitMatrix):
        inputs, outputs = weight.in_features, weight.out_features
        return _Linear(bits=16, inputs=inputs, outputs=outputs, columns=outputs, group=inputs)
    tiles, groups, _ = weight.scales.shape
    return _Linear(
        bits=weight.bits,
        inputs=weight.in_features,
        outputs=tiles * TILE,
        columns=weight.out_features,
        group=weight.in_features // groups,
        data=weight.words.data_ptr(),
        scales=weight.scales.data_ptr(),
        zeros=None if weight.zeros is None else weight.zeros.data_ptr(),
        zero=2 ** (weight.bits - 1),
        order=None if weight.order is None else weight.order.data_ptr(),
        rounds=int(weight.activations == "int8"),
    )
