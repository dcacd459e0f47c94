"""What a card says of quantized weights: their layout and who reads it, how they were rounded, and what it cost.

From `quantization_config` in config.json and, where `leveret quantize` wrote one, from quantization.json beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.precision.awq_layout import METHOD as AWQ
from leveret.precision.gptq_layout import OWN_METHOD
from leveret.precision.nf4_layout import METHOD as BITSANDBYTES
from leveret.precision.nf4_layout import stored_bits
from leveret.weights.safetensors import read_json

GPTQ_READERS = (
    "The weights are in the GPTQ layout, which GPTQModel, vLLM and transformers (with GPTQModel installed) read."
)
READERS = {
    AWQ: "The weights are in AutoAWQ's layout, which vLLM and transformers (with GPTQModel installed) read.",
    BITSANDBYTES: "The weights are in bitsandbytes' NF4, which transformers (with bitsandbytes installed) reads.",
    OWN_METHOD: "The linear layers are in the GPTQ layout, the embedding in eight bits, which only leveret reads.",
}


@dataclass(frozen=True, kw_only=True)
class QuantizationFacts:
    """What is known of a quantized model."""

    layout: str
    """`gptq`, `awq` or `nf4`, as tags on a hub have it."""
    bits: int
    description: str
    """Bits, groups and layout, for a table."""
    readers: str
    """Who reads it, as a sentence."""
    rows: tuple[tuple[str, str], ...]
    """More for the table: how it was rounded, and what it cost."""


def quantization_facts(directory: Path, config: Mapping[str, Any] | None) -> QuantizationFacts | None:
    """Facts of a model directory by its `quantization_config`; None when it is not quantized."""
    if not config:
        return None
    method, bits = str(config.get("quant_method")), stored_bits(config) or 0
    group = int(config.get("group_size", config.get("q_group_size", 0)))
    layout = {BITSANDBYTES: "nf4", AWQ: "awq"}.get(method, "gptq")
    groups = f"groups of {group}" if group > 0 else "one group an output"
    described = "NF4 in blocks of 64" if layout == "nf4" else f"{groups}, {layout.upper()} layout"
    report = directory / "quantization.json"
    return QuantizationFacts(
        layout=layout,
        bits=bits,
        description=f"{bits} bits, {described}",
        readers=READERS.get(method, GPTQ_READERS),
        rows=tuple(_rows(read_json(report))) if report.is_file() else (),
    )


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if "method" in report:
        text = f" on {report['calibration_tokens']:,} tokens of text" if report.get("calibration_tokens") else ""
        rows.append(("rounded by", f"{report['method']}{text}"))
    if report.get("rounded_alone"):
        rows.append(("rounded to nearest, for too little text", f"{report['rounded_alone']} layers"))
    if report.get("perplexity_before") is not None:
        change = f"{report['perplexity_before']:.3f} to {report['perplexity_after']:.3f}"
        rows.append(("perplexity by quantization", f"{change}, on {report['text_tokens']:,} tokens"))
    return rows
