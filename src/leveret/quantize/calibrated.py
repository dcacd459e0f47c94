"""Fill a quantized model layer by layer, with calibration text running through it: the loop of GPTQ and AWQ.

For each layer: read it, run the held-out windows through it as it is, round its Linears with the calibration rows
before them, send the rows on, put the layer's parts into the new model, forget the layer. The held-out windows so give
the perplexity before without the whole model ever being in memory.

A Linear that saw fewer tokens than `fewest_tokens` (an expert that the router rarely chooses) is rounded to nearest,
and its report says why: H of a few tokens knows nothing of most inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.engine.perplexity import Window
from leveret.kernels.int_matmul import GroupedIntegers, dequantize
from leveret.model.decoder import Decoder, DecoderLayer
from leveret.precision.linear import IntegerStorage, QuantizedLinear
from leveret.precision.rounding import relative_error, round_to_nearest
from leveret.quantize.calibration import Calibration
from leveret.quantize.hessian import Hessian, output_error
from leveret.quantize.report import LayerReport, naming
from leveret.quantize.source import PartwiseModel
from leveret.quantize.walk import Share, States, halves, head_share, perplexity_rows
from leveret.weights.placing import assign
from leveret.weights.reader import WeightReader
from leveret.weights.rewrite import converted


class Method(Protocol):
    """How calibration is used."""

    name: str

    def balance(self, share: Share) -> None:
        """Move factors between what makes the inputs of a share and its Linears; the function stays."""

    def round(self, weights: Sequence[Tensor], hessian: Tensor) -> list[GroupedIntegers]:
        """Round weights (O, I) that take the same inputs."""


class CalibratedFilling:
    """Fills the model of `empty_quantized`; iterate over it for the reports, then ask for `perplexity_before`."""

    def __init__(
        self,
        model: Decoder,
        source: Path,
        storage: IntegerStorage,
        method: Method,
        calibration: Calibration,
        *,
        windows: Sequence[Window],
        fewest_tokens: int,
        search: bool,
        other_dtype: torch.dtype | None,
    ) -> None:
        self.model, self.source, self.storage, self.method = model, source, storage, method
        self.calibration, self.windows = calibration, windows
        self.fewest_tokens, self.search, self.other_dtype = fewest_tokens, search, other_dtype
        self.perplexity_before: float | None = None

    @torch.no_grad()
    def __iter__(self) -> Iterator[LayerReport]:
        with WeightReader(self.source) as reader:
            whole = PartwiseModel(self.source, reader)
            rows = States(whole.model, self.calibration.rows)
            held_out = States(whole.model, perplexity_rows([window.ids for window in self.windows]))
            for number, layer in enumerate(whole.model.layers):
                prefix = f"layers.{number}"
                whole.fill(prefix, whole.dtype)
                for place, x, plan in held_out.each():
                    held_out.values[place] = layer(x, plan)
                assert isinstance(layer, DecoderLayer)
                for half in halves(layer, prefix, rows):
                    for share in half.balanced:
                        self.method.balance(share)
                    for share in half.rounded:
                        yield from self._round(share, whole)
                    half.go_on()
                self._keep(whole, prefix)
                whole.empty(prefix)
            self.perplexity_before = _perplexity(whole.model, held_out, self.windows)
            yield from self._round(head_share(whole.model, rows), whole)
        for part in ("embed_tokens", "norm", *(() if whole.config.tie_word_embeddings else ("lm_head",))):
            self._keep(whole, part)
        self.model.tie_weights()

    def _round(self, share: Share, whole: PartwiseModel) -> Iterator[LayerReport]:
        """Round those Linears of a share that the new model has quantized, there and in place."""
        linears = {name: linear for name, linear in share.linears.items() if name in self._targets}
        if not linears:
            return
        first = next(iter(linears.values()))
        hessian = Hessian(first.in_features)
        for x in share.inputs():
            hessian.add(x)
        mean = hessian.mean()
        reason = self._reason_to_round_alone(hessian.tokens)
        with naming(" and ".join(linears)):
            weights = [linear.weight for linear in linears.values()]
            rounded = (
                self.method.round(weights, mean) if reason is None else [self._alone(weight) for weight in weights]
            )
        for (name, linear), integers in zip(linears.items(), rounded, strict=True):
            target = self._targets[name]
            target.fill(integers)
            kept = dequantize(integers, torch.float32)
            yield LayerReport(
                name=name,
                parameters=linear.weight.numel(),
                bytes_before=linear.weight.numel() * whole.stored_dtype(f"{name}.weight").itemsize,
                bytes_after=sum(tensor.nbytes for tensor in target.buffers()),
                relative_error=relative_error(linear.weight, integers),
                method=self.method.name if reason is None else "round-to-nearest",
                reason=reason,
                tokens=hessian.tokens,
                output_error=output_error(kept - linear.weight.float(), linear.weight, mean)
                if hessian.tokens
                else None,
            )
            linear.weight.copy_(kept)

    @property
    def _targets(self) -> dict[str, QuantizedLinear]:
        return {name: module for name, module in self.model.named_modules() if isinstance(module, QuantizedLinear)}

    def _reason_to_round_alone(self, tokens: int) -> str | None:
        if tokens >= self.fewest_tokens:
            return None
        return f"it saw {tokens:,} of {self.calibration.tokens:,} calibration tokens, fewer than {self.fewest_tokens:,}"

    def _alone(self, weight: Tensor) -> GroupedIntegers:
        storage = self.storage
        return round_to_nearest(
            weight, bits=storage.bits, group_size=storage.group_size, symmetric=storage.symmetric, search=self.search
        )

    def _keep(self, whole: PartwiseModel, module: str) -> None:
        """Put what stays whole of a part into the new model."""
        wanted = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        part = whole.model.get_submodule(module)
        for name, value in part.named_parameters():
            full = f"{module}.{name}"
            if full in wanted:
                dtype = self.other_dtype or whole.stored_dtype(full)
                assign(self.model, full, converted(full, value.detach(), dtype).clone())


def _perplexity(model: Decoder, states: States, windows: Sequence[Window]) -> float | None:
    """Of the windows whose states have come through all layers; None without windows."""
    if not windows:
        return None
    loss, predicted = 0.0, 0
    for x, window in zip(states.values, windows, strict=True):
        logits = model.lm_head(model.norm(x))[0, :-1].float()
        loss += float(F.cross_entropy(logits, torch.tensor(window.ids[1:]), reduction="sum"))
        predicted += len(window.ids) - 1
    mean = loss / predicted
    return math.exp(mean) if mean < 700 else math.inf
