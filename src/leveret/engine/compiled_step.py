"""Whether a model's next tokens can be computed by one compiled call, and the call.

Between two tokens of a small model Python would start a few hundred operations of a few microseconds each. The compiled
step (kernels/decode_step.py) reads the same weights and the same cache. It takes plain models: bfloat16 on a CPU, dense
feed-forward blocks or mixtures, Linears that are nn.Linear or quantized, with or without a LoRA, and nothing else (a
hook is somebody else's code, which must run). For the rest `Decoder.hidden` stays, which is also the step's twin.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leveret.kernels.decode_step import (
    STEP,
    DecodeExpert,
    DecodeLayer,
    DecodeLinear,
    DecodeShape,
    DecodeStep,
    DecodeWeight,
    low_rank,
    weight_refusal,
)
from leveret.kernels.integer_product import activation_block, round_compiled
from leveret.kernels.native.library import missing
from leveret.model.attention import SelfAttention
from leveret.model.decoder import Decoder, DecoderLayer
from leveret.model.feed_forward import FeedForward
from leveret.model.lora import LoraLinear
from leveret.model.moe import SparseMixture
from leveret.model.paged_cache import PagedRows
from leveret.precision.linear import QuantizedLinear

logger = logging.getLogger(__name__)


class CompiledStep:
    """The compiled step of one model."""

    def __init__(self, model: Decoder, step: DecodeStep) -> None:
        self._model, self._step = model, step
        self._angles: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, model: Decoder) -> Self | None:
        """The step for a model as it is now; None, with the reason in the log, when it must go through its modules."""
        try:
            step = _build(model)
        except _Refused as refusal:
            logger.info("each token goes through the model's modules: %s", refusal)
            return None
        return cls(model, step)

    def __call__(self, rows: PagedRows, *, as_alone: bool = False) -> Tensor:
        """Feed the new tokens, T in all, which the cache then holds -> the logits after each, (T, V).

        as_alone: the bits of each token fed in a call of its own.
        """
        model = self._model
        cos, signed_sin = self._turns(rows)
        x = F.embedding(rows.ids[0], model.embed_tokens.weight)
        cache = rows.cache
        positions = rows.positions[0].tolist()
        return self._step(x, cache.keys, cache.values, rows.tables(), positions, cos, signed_sin, as_alone=as_alone)

    def _turns(self, rows: PagedRows) -> tuple[Tensor, Tensor]:
        """cos and signed sin of each new token, (T, D), looked up: a tiny model spent a tenth of a token on them."""
        if self._model.config.rope.kind == "dynamic":  # angles of a sequence follow its length
            angles = self._model.rope(rows.positions, rows.planned_lengths, torch.bfloat16)
            cos, signed_sin = (each.reshape(rows.num_tokens, -1).contiguous() for each in angles)
            return cos, signed_sin
        positions = rows.positions[0]
        needed = int(positions.max()) + 1
        if self._angles is None or len(self._angles[0]) < needed:
            along = torch.arange(2 * needed).unsqueeze(0)
            cos, signed_sin = self._model.rope(along, None, torch.bfloat16)
            self._angles = (cos[0, 0].contiguous(), signed_sin[0, 0].contiguous())
        return F.embedding(positions, self._angles[0]), F.embedding(positions, self._angles[1])


class _Refused(Exception):
    pass


def _build(model: Decoder) -> DecodeStep:
    config = model.config
    if (reason := missing()) is not None:
        raise _Refused(reason)
    sizes = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
    for name, number in (*sizes.items(), ("head_dim", config.head_dim)):
        if number % STEP:
            raise _Refused(f"{name} {number} is no multiple of {STEP}")
    if model.training:
        raise _Refused("it is being trained")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise _Refused(f"{name or 'the model'} has a hook")
    norms = [model.norm.weight, model.embed_tokens.weight]
    if any(weight_refusal(each.view(1, -1) if each.ndim == 1 else each) for each in norms):
        raise _Refused("it is not in bfloat16 on a CPU")
    layers = [_layer(layer) for layer in model.layers if isinstance(layer, DecoderLayer)]
    if len(layers) != len(model.layers):
        raise _Refused("a layer was replaced")
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
    return DecodeStep(shape, layers, last_norm=model.norm.weight.detach(), head=_head(model))


def _head(model: Decoder) -> DecodeWeight:
    """The output matrix; in 8 bits where the layers have no more and round activations to 8 bits anyway.

    Whole, it is a fifth of all that a small quantized model reads for a token.
    """
    weight = _weight(model.lm_head)
    rounds = any(isinstance(each, QuantizedLinear) and each.activations == "int8" for each in model.layers.modules())
    if not rounds or not isinstance(weight, Tensor):
        return weight
    logger.info("generating reads the output matrix in 8 bits, as the model's layers are stored in no more")
    return round_compiled(weight, group_size=activation_block(weight.shape[1]))


def _layer(layer: DecoderLayer) -> DecodeLayer:
    attention, mlp = layer.self_attn, layer.mlp
    if type(attention) is not SelfAttention:
        raise _Refused(f"its attention is a {type(attention).__name__}")
    norms = [layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()]
    if any(weight_refusal(norm.view(1, -1)) for norm in norms):
        raise _Refused("a norm is not in bfloat16 on a CPU")
    experts = mlp.experts if type(mlp) is SparseMixture else [mlp]
    return DecodeLayer(
        attention_norm=norms[0],
        feed_forward_norm=norms[1],
        query=_linear(attention.q_proj),
        key=_linear(attention.k_proj),
        value=_linear(attention.v_proj),
        out=_linear(attention.o_proj),
        experts=_alike([_expert(each) for each in experts]),
        router=_router(mlp) if type(mlp) is SparseMixture else None,
    )


def _expert(mlp: nn.Module) -> DecodeExpert:
    if type(mlp) is not FeedForward:
        raise _Refused(f"its feed-forward block is a {type(mlp).__name__}")
    return DecodeExpert(gate=_linear(mlp.gate_proj), up=_linear(mlp.up_proj), down=_linear(mlp.down_proj))


def _alike(experts: Sequence[DecodeExpert]) -> tuple[DecodeExpert, ...]:
    """The experts, if rows can be prepared for all of them at once."""
    kinds = {tuple(_kind(linear) for linear in (each.gate, each.up, each.down)) for each in experts}
    if len(kinds) > 1:
        raise _Refused("the experts of a layer are not stored alike")
    return tuple(experts)


def _kind(linear: DecodeLinear) -> tuple[object, ...]:
    weight, rank = linear.weight, 0 if linear.change is None else len(linear.change.down)
    if isinstance(weight, Tensor):
        return (16, rank)
    return weight.bits, weight.activations, weight.scales.shape[1], rank


def _router(mlp: SparseMixture) -> Tensor:
    if type(mlp.gate) is not nn.Linear or not isinstance(weight := _weight(mlp.gate), Tensor):
        raise _Refused(f"a router is a {type(mlp.gate).__name__}")
    return weight


def _linear(linear: nn.Module) -> DecodeLinear:
    if not isinstance(linear, LoraLinear):
        return DecodeLinear(_weight(linear))
    if linear.magnitude is not None:
        raise _Refused("its adapter is a DoRA")
    return DecodeLinear(_weight(linear.base), low_rank(linear.lora_A, linear.lora_B, linear.settings.scale))


def _weight(linear: nn.Module) -> DecodeWeight:
    bias = getattr(linear, "bias", None)
    if bias is not None:
        raise _Refused("a Linear has a bias")
    weight: DecodeWeight | None = None
    if type(linear) is nn.Linear:
        weight = linear.weight.detach()
    elif isinstance(linear, QuantizedLinear):
        weight = linear.compiled_weight()
    if weight is None:
        raise _Refused(f"a Linear is a {type(linear).__name__}")
    if (refusal := weight_refusal(weight)) is not None:
        raise _Refused(f"a weight cannot be read: {refusal}")
    return weight
