"""What the compiled step reads of a model, or why it cannot have it.

It takes plain models: bfloat16 on a CPU, dense feed-forward blocks or mixtures, Linears that are nn.Linear or
quantized, with or without a LoRA or DoRA, and nothing else (a hook is somebody else's code, which must run).

Models that lie in the same memory (`weights/adapted.py`) can be computed together: `KnownWeights` gives for the same
memory the same table, and `joined` makes one of layers that differ in their adapters only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from leveret.kernels.decode_step import (
    STEP,
    DecodeExpert,
    DecodeLayer,
    DecodeLinear,
    DecodeShape,
    DecodeWeight,
    FourBitMatrix,
    low_rank,
    weight_refusal,
)
from leveret.kernels.integer_product import CompiledWeight, activation_block, round_compiled
from leveret.kernels.native.library import missing
from leveret.model.attention import SelfAttention
from leveret.model.decoder import Decoder, DecoderLayer
from leveret.model.feed_forward import FeedForward
from leveret.model.linear import is_dense
from leveret.model.lora import LoraLinear
from leveret.model.moe import SparseMixture
from leveret.precision.linear import QuantizedLinear
from leveret.precision.nf4 import NF4Linear

logger = logging.getLogger(__name__)


class Refused(Exception):
    """A model has no compiled step; says why."""


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """Everything of one model, or of several that were joined."""

    shape: DecodeShape
    layers: tuple[DecodeLayer, ...]
    last_norm: Tensor
    head: DecodeWeight


class KnownWeights:
    """Tables of weights by the memory they lie in, while nobody writes to it."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], DecodeWeight] = {}

    def get(self, kind: str, tensors: Sequence[Tensor | None], make: Callable[[], DecodeWeight]) -> DecodeWeight:
        """What was made of these tensors before, or is made now."""
        memory = tuple(None if each is None else (each.data_ptr(), each.shape, each.dtype) for each in tensors)
        key = (kind, *memory)
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]


def parts_of(model: Decoder, known: KnownWeights) -> StepParts:
    """The parts of a model as it is now. Raises Refused."""
    config = model.config
    if (reason := missing()) is not None:
        raise Refused(reason)
    sizes = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
    for name, number in (*sizes.items(), ("head_dim", config.head_dim)):
        if number % STEP:
            raise Refused(f"{name} {number} is no multiple of {STEP}")
    if model.training:
        raise Refused("it is being trained")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Refused(f"{name or 'the model'} has a hook")
    norms = [model.norm.weight, model.embed_tokens.weight]
    if any(weight_refusal(each.view(1, -1) if each.ndim == 1 else each) for each in norms):
        raise Refused("it is not in bfloat16 on a CPU")
    layers = tuple(_layer(layer, known) for layer in model.layers if isinstance(layer, DecoderLayer))
    if len(layers) != len(model.layers):
        raise Refused("a layer was replaced")
    shape = DecodeShape(
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        window=config.sliding_window,
        eps=config.rms_norm_eps,
        scales_in_float32=config.norm_scales_in_float32,
        experts_per_token=1 if config.moe is None else config.moe.experts_per_token,
    )
    return StepParts(shape=shape, layers=layers, last_norm=model.norm.weight.detach(), head=_head(model, known))


def joined(first: StepParts, second: StepParts) -> StepParts | None:
    """Both, with the changes of the first before those of the second; None unless all else is the same memory."""
    if first.shape != second.shape or first.head is not second.head or not _same(first.last_norm, second.last_norm):
        return None
    layers = tuple(map(_joined_layer, first.layers, second.layers))
    found = tuple(layer for layer in layers if layer is not None)
    return replace(first, layers=found) if len(found) == len(layers) else None


def _joined_layer(first: DecodeLayer, second: DecodeLayer) -> DecodeLayer | None:
    pairs = [
        (getattr(first, name), getattr(second, name)) for name in ("attention_norm", "feed_forward_norm", "router")
    ]
    if not all(_same(*pair) for pair in pairs):
        return None
    linears = {name: _joined_linear(getattr(first, name), getattr(second, name)) for name in _LINEARS}
    experts = [
        {name: _joined_linear(getattr(one, name), getattr(other, name)) for name in _EXPERT}
        for one, other in zip(first.experts, second.experts, strict=True)
    ]
    if any(None in each.values() for each in (linears, *experts)):
        return None
    return replace(first, **linears, experts=tuple(DecodeExpert(**each) for each in experts))  # type: ignore[arg-type]


def _joined_linear(first: DecodeLinear, second: DecodeLinear) -> DecodeLinear | None:
    same = first.weight is second.weight
    return replace(first, changes=(*first.changes, *second.changes)) if same else None


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.data_ptr() == second.data_ptr()


_TENSORS = ("attention_norm", "feed_forward_norm", "router")
_LINEARS = ("query", "key", "value", "out")
_EXPERT = ("gate", "up", "down")


def _head(model: Decoder, known: KnownWeights) -> DecodeWeight:
    """The output matrix; in 8 bits where the layers have no more and round activations to 8 bits anyway.

    Whole, it is a fifth of all that a small quantized model reads for a token.
    """
    weight = _weight(model.lm_head, known)
    rounds = any(isinstance(each, QuantizedLinear) and each.activations == "int8" for each in model.layers.modules())
    if not rounds or not isinstance(weight, Tensor):
        return weight
    logger.info("generating reads the output matrix in 8 bits, as the model's layers are stored in no more")
    whole = weight
    return known.get("rounded", [whole], lambda: round_compiled(whole, group_size=activation_block(whole.shape[1])))


def _layer(layer: DecoderLayer, known: KnownWeights) -> DecodeLayer:
    attention, mlp = layer.self_attn, layer.mlp
    if type(attention) is not SelfAttention:
        raise Refused(f"its attention is a {type(attention).__name__}")
    norms = [layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()]
    if any(weight_refusal(norm.view(1, -1)) for norm in norms):
        raise Refused("a norm is not in bfloat16 on a CPU")
    experts = mlp.experts if type(mlp) is SparseMixture else [mlp]
    return DecodeLayer(
        attention_norm=norms[0],
        feed_forward_norm=norms[1],
        query=_linear(attention.q_proj, known),
        key=_linear(attention.k_proj, known),
        value=_linear(attention.v_proj, known),
        out=_linear(attention.o_proj, known),
        experts=_alike([_expert(each, known) for each in experts]),
        router=_router(mlp, known) if type(mlp) is SparseMixture else None,
    )


def _expert(mlp: nn.Module, known: KnownWeights) -> DecodeExpert:
    if type(mlp) is not FeedForward:
        raise Refused(f"its feed-forward block is a {type(mlp).__name__}")
    gate, up, down = (_linear(each, known) for each in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    return DecodeExpert(gate=gate, up=up, down=down)


def _alike(experts: Sequence[DecodeExpert]) -> tuple[DecodeExpert, ...]:
    """The experts, if rows can be prepared for all of them at once."""
    kinds = {tuple(_kind(linear) for linear in (each.gate, each.up, each.down)) for each in experts}
    if len(kinds) > 1:
        raise Refused("the experts of a layer are not stored alike")
    return tuple(experts)


def _kind(linear: DecodeLinear) -> tuple[object, ...]:
    (change,) = linear.changes
    weight, rank = linear.weight, 0 if change is None else len(change.down)
    if not isinstance(weight, CompiledWeight):
        return type(weight), rank
    return weight.bits, weight.activations, weight.scales.shape[1], rank


def _router(mlp: SparseMixture, known: KnownWeights) -> Tensor:
    if not is_dense(mlp.gate) or not isinstance(weight := _weight(mlp.gate, known), Tensor):
        raise Refused(f"a router is a {type(mlp.gate).__name__}")
    return weight


def _linear(linear: nn.Module, known: KnownWeights) -> DecodeLinear:
    if not isinstance(linear, LoraLinear):
        return DecodeLinear(_weight(linear, known))
    factors = None if linear.magnitude is None else linear.output_factors()
    change = low_rank(linear.lora_A, linear.lora_B, linear.settings.scale, factors)
    return DecodeLinear(_weight(linear.base, known), (change,))


def _weight(linear: nn.Module, known: KnownWeights) -> DecodeWeight:
    if getattr(linear, "bias", None) is not None:
        raise Refused("a Linear has a bias")
    if is_dense(linear):
        weight = linear.weight.detach()
        return known.get("plain", [weight], lambda: _readable(weight))
    if isinstance(linear, NF4Linear):
        nf4 = linear
        return known.get("nf4", nf4.stored_tensors(), lambda: _readable(_looked_up(nf4)))
    if not isinstance(linear, QuantizedLinear):
        raise Refused(f"a Linear is a {type(linear).__name__}")
    kind = f"{linear.bits} bits, {linear.product}, {linear.activations}"
    return known.get(kind, linear.stored_tensors(), lambda: _readable(linear.compiled_weight()))


def _looked_up(linear: NF4Linear) -> FourBitMatrix:
    return FourBitMatrix(numbers=linear.numbers(), out_features=linear.out_features, in_features=linear.in_features)


def _readable(weight: DecodeWeight | None) -> DecodeWeight:
    if weight is None:
        raise Refused("a quantized Linear is not for the compiled kernels")
    if (refusal := weight_refusal(weight)) is not None:
        raise Refused(f"a weight cannot be read: {refusal}")
    return weight
