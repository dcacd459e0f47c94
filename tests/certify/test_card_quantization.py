"""What the card says of quantized weights, for each layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leveret.certify.card_quantization import quantization_facts
from leveret.precision.awq_layout import AwqStorage
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.nf4_layout import Nf4Storage


@pytest.mark.parametrize(
    ("storage", "layout", "description", "reader"),
    [
        (
            GptqStorage(bits=8, group_size=None, symmetric=True),
            "gptq", "8 bits, one group an output, GPTQ layout", "vLLM",
        ),
        (AwqStorage(group_size=64), "awq", "4 bits, groups of 64, AWQ layout", "AutoAWQ's"),
        (Nf4Storage(), "nf4", "4 bits, NF4 in blocks of 64", "bitsandbytes"),
        (
            GptqStorage(bits=4, group_size=128, symmetric=True, embedding_in_8_bits=True),
            "gptq", "4 bits, groups of 128, GPTQ layout", "only leveret",
        ),
    ],
)  # fmt: skip
def test_each_layout_is_described_and_its_readers_named(
    tmp_path: Path, storage: GptqStorage | AwqStorage | Nf4Storage, layout: str, description: str, reader: str
) -> None:
    facts = quantization_facts(tmp_path, storage.to_dict())
    assert facts is not None and facts.layout == layout and facts.description == description
    assert reader in facts.readers and facts.rows == ()


def test_the_report_of_quantizing_tells_how_and_what_it_cost(tmp_path: Path) -> None:
    report = {
        "method": "gptq", "calibration_tokens": 58000, "rounded_alone": 3, "perplexity_before": 9.5,
        "perplexity_after": 9.75, "text_tokens": 6000,
    }  # fmt: skip
    (tmp_path / "quantization.json").write_text(json.dumps(report))
    facts = quantization_facts(tmp_path, GptqStorage(bits=4, group_size=128, symmetric=True).to_dict())
    assert facts is not None and dict(facts.rows) == {
        "rounded by": "gptq on 58,000 tokens of text",
        "rounded to nearest, for too little text": "3 layers",
        "perplexity by quantization": "9.500 to 9.750, on 6,000 tokens",
    }


def test_a_model_that_is_not_quantized_has_none(tmp_path: Path) -> None:
    assert quantization_facts(tmp_path, None) is None
