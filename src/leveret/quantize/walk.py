"""Walk a decoder layer by layer: the calibration rows stand before a layer, its Linears are rounded, the rows go on.

Only one layer is in memory as it was, and of the rows only their states before it and what the last Linear of a half is
given, which is kept from when it was rounded until the rows go on. A layer has two halves, x += attention(norm(x)) and
x += feed_forward(norm(x)). In each half Linears that take the same inputs form a `Share`. Inputs are computed when they
are asked for, with the weights as they are then: what is rounded first is felt by what comes later, which can make up
for it.

The experts of a mixture are shares of their own, with the tokens that the router sends them.

Shape legend: T tokens of a row, H hidden, N tokens that an expert sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leveret.model.attention import AttentionPlan, plan_without_cache
from leveret.model.decoder import Decoder, DecoderLayer
from leveret.model.feed_forward import FeedForward
from leveret.model.moe import SparseMixture
from leveret.model.norm import RMSNorm
from leveret.quantize.calibration import CalibrationRow


@dataclass(frozen=True, kw_only=True)
class Share:
    """Linears that take the same inputs."""

    linears: dict[str, nn.Linear]
    """By their names in the model."""
    inputs: Callable[[], Iterator[Tensor]]
    """What they take, row by row, (..., in_features)."""
    source: RMSNorm | nn.Linear | None = None
    """What makes the inputs, output by output, so that a factor can move from it into the Linears; None: nothing."""
    router: nn.Linear | None = None
    """Takes the same inputs, and is never rounded."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """Half a layer."""

    balanced: list[Share]
    """Where factors may move, before anything of this half is rounded."""
    rounded: list[Share]
    """What is rounded, in this order."""
    go_on: Callable[[], None]
    """Send the rows through this half."""


class States:
    """Rows on their way through a decoder."""

    def __init__(self, model: Decoder, rows: Sequence[CalibrationRow]) -> None:
        self._model, self._rows = model, rows
        self.values = [F.embedding(row.ids, model.embed_tokens.weight) for row in rows]  # (1, T, H) each

    def each(self) -> Iterator[tuple[int, Tensor, AttentionPlan]]:
        """Number, states and attention plan of each row."""
        for number, (row, x) in enumerate(zip(self._rows, self.values, strict=True)):
            plan = plan_without_cache(
                self._model.config, self._model.rope, (1, row.ids.shape[1]), positions=row.positions,
                document_ids=row.document_ids, dtype=x.dtype, device=x.device,
            )  # fmt: skip
            yield number, x, plan


def halves(layer: DecoderLayer, prefix: str, states: States) -> Iterator[Half]:
    """The two halves of a layer; each is to be rounded, and sent on, before the next is asked for."""
    yield _attention_half(layer, f"{prefix}.self_attn", states)
    if isinstance(layer.mlp, SparseMixture):
        yield _mixture_half(layer, layer.mlp, f"{prefix}.mlp", states)
    else:
        yield _feed_forward_half(layer, layer.mlp, f"{prefix}.mlp", states)


def head_share(model: Decoder, states: States) -> Share:
    """The output matrix, behind all layers."""

    def inputs() -> Iterator[Tensor]:
        yield from (model.norm(x) for x in states.values)

    return Share(linears={"lm_head": model.lm_head}, inputs=inputs)


def _attention_half(layer: DecoderLayer, prefix: str, states: States) -> Half:
    attention, norm = layer.self_attn, layer.input_layernorm

    def normed() -> Iterator[Tensor]:
        yield from (norm(x) for x in states.values)

    def attended() -> Iterator[Tensor]:
        for _, x, plan in states.each():
            yield _input_of(attention.o_proj, lambda x=x, plan=plan: attention(norm(x), plan))  # type: ignore[misc]

    kept = _Kept(attended)
    shared = {f"{prefix}.{name}": getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")}
    one_to_one = attention.v_proj.out_features == attention.o_proj.in_features  # not with grouped queries
    first = Share(linears=shared, inputs=normed, source=norm)
    last = Share(
        linears={f"{prefix}.o_proj": attention.o_proj}, inputs=attended,
        source=attention.v_proj if one_to_one else None,
    )  # fmt: skip
    return Half(
        balanced=[first, last],
        rounded=[first, replace(last, inputs=kept.all)],
        go_on=lambda: _add_outputs(states, attention.o_proj, kept),
    )


def _feed_forward_half(layer: DecoderLayer, block: FeedForward, prefix: str, states: States) -> Half:
    norm = layer.post_attention_layernorm

    def normed() -> Iterator[Tensor]:
        yield from (norm(x) for x in states.values)

    first, last = _block_shares(block, prefix, normed, norm)
    kept = _Kept(last.inputs)
    return Half(
        balanced=[first, last],
        rounded=[first, replace(last, inputs=kept.all)],
        go_on=lambda: _add_outputs(states, block.down_proj, kept),
    )


def _mixture_half(layer: DecoderLayer, mixture: SparseMixture, prefix: str, states: States) -> Half:
    norm = layer.post_attention_layernorm

    def normed() -> Iterator[Tensor]:
        yield from (norm(x) for x in states.values)

    def go_on() -> None:
        for number, x in enumerate(states.values):
            states.values[number] = x + mixture(norm(x))

    names = [f"{prefix}.experts.{number}" for number in range(len(mixture.experts))]
    experts = [expert for expert in mixture.experts if isinstance(expert, FeedForward)]
    blocks = [
        _block_shares(expert, name, _sent_to(mixture, number, normed), None)
        for number, (name, expert) in enumerate(zip(names, experts, strict=True))
    ]
    together = Share(
        linears={name: linear for gate_and_up, _ in blocks for name, linear in gate_and_up.linears.items()},
        inputs=normed, source=norm, router=mixture.gate,
    )  # fmt: skip
    return Half(
        balanced=[together, *(down for _, down in blocks)],
        rounded=[share for block in blocks for share in block],
        go_on=go_on,
    )


def _block_shares(
    block: FeedForward, prefix: str, inputs: Callable[[], Iterator[Tensor]], source: RMSNorm | None
) -> list[Share]:
    """Gate and up, then down."""

    def gated() -> Iterator[Tensor]:
        for x in inputs():
            yield _input_of(block.down_proj, lambda x=x: block(x))  # type: ignore[misc]

    gate_and_up = {f"{prefix}.{name}": getattr(block, name) for name in ("gate_proj", "up_proj")}
    return [
        Share(linears=gate_and_up, inputs=inputs, source=source),
        Share(linears={f"{prefix}.down_proj": block.down_proj}, inputs=gated, source=block.up_proj),
    ]


class _Kept:
    """What the last Linear of a half is given, row by row, kept from when it was rounded."""

    def __init__(self, compute: Callable[[], Iterator[Tensor]]) -> None:
        self._compute = compute
        self._values: list[Tensor] = []

    def all(self) -> Iterator[Tensor]:
        """Each row's, computed now and kept."""
        self._values = []
        for value in self._compute():
            self._values.append(value)
            yield value

    def take(self) -> Iterator[Tensor]:
        """Each row's, kept no longer; computed now if the Linear was not rounded."""
        if not self._values:
            yield from self._compute()
        while self._values:
            yield self._values.pop(0)


def _add_outputs(states: States, linear: nn.Linear, kept: _Kept) -> None:
    for number, value in enumerate(kept.take()):
        states.values[number] = states.values[number] + linear(value)


def _sent_to(
    mixture: SparseMixture, expert: int, inputs: Callable[[], Iterator[Tensor]]
) -> Callable[[], Iterator[Tensor]]:
    """The tokens (N, H) of each row that the router sends to one expert."""

    def sent() -> Iterator[Tensor]:
        for x in inputs():
            tokens = x.reshape(-1, x.shape[-1])
            chosen = mixture.gate(tokens).float().softmax(dim=-1).topk(mixture.experts_per_token, dim=-1).indices
            if len(mine := tokens[(chosen == expert).any(dim=-1)]):
                yield mine

    return sent


class _Reached(Exception):
    """The Linear that is watched was called."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


def _input_of(linear: nn.Linear, run: Callable[[], Tensor]) -> Tensor:
    """What `linear` is given while `run` runs, which goes no further."""

    def watch(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _Reached(arguments[0])

    handle = linear.register_forward_pre_hook(watch)
    try:
        run()
    except _Reached as reached:
        return reached.x
    finally:
        handle.remove()
    raise AssertionError("the Linear was not called")


def perplexity_rows(windows: Sequence[Sequence[int]]) -> list[CalibrationRow]:
    """Windows of one document each, as rows."""
    return [
        CalibrationRow(
            ids=torch.tensor([list(ids)]),
            positions=torch.arange(len(ids)).unsqueeze(0),
            document_ids=torch.zeros(1, len(ids), dtype=torch.long),
        )
        for ids in windows
    ]
