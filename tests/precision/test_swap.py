"""Which Linears are swapped, by rule; and how the product is chosen for a whole model."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from leveret.errors import ConfigError
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.int4 import Int4Linear
from leveret.precision.int8 import Int8Linear
from leveret.precision.linear import QuantizedLinear
from leveret.precision.swap import choose_product, prepare_quantized, quantize_linears


class Tiny(nn.Module):
    """The parts of a decoder that the rules speak of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(16, 32)
        self.gate_proj = nn.Linear(32, 64, bias=True)
        self.gate = nn.Linear(32, 8, bias=False)
        self.down_proj = nn.Linear(64, 32, bias=False)
        self.lm_head = nn.Linear(32, 16, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        x = x + self.gate(x).mean(-1, keepdim=True) + self.down_proj(self.gate_proj(x).relu())
        return self.lm_head(x)


def quantized_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]


def storage(**changes: object) -> GptqStorage:
    return GptqStorage(**({"bits": 4, "group_size": 16, "symmetric": True} | changes))


def test_output_matrix_embedding_and_router_are_left_alone() -> None:
    model = Tiny()
    assert quantize_linears(model, storage()) == quantized_names(model) == ["gate_proj", "down_proj"]
    assert isinstance(model.gate_proj, Int4Linear) and isinstance(model.gate, nn.Linear)


def test_a_pattern_keeps_more_and_lm_head_can_be_asked_for() -> None:
    model = Tiny()
    quantize_linears(model, storage(bits=8, lm_head=True, skipped=("down_.*",)))
    assert quantized_names(model) == ["gate_proj", "lm_head"]
    assert isinstance(model.lm_head, Int8Linear)


def test_a_prepared_model_takes_the_state_dict_of_a_quantized_one() -> None:
    torch.manual_seed(0)
    trained = Tiny()
    settings = storage(symmetric=False)
    quantize_linears(trained, settings)
    fresh = Tiny()
    prepare_quantized(fresh, settings.to_dict())
    fresh.load_state_dict(trained.state_dict(), strict=True)
    ids = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(fresh(ids), trained(ids), rtol=0, atol=0)


def test_preparing_works_without_memory_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Tiny()
    prepare_quantized(model, storage().to_dict())
    assert model.gate_proj.qweight.is_meta
    filled = Tiny()
    quantize_linears(filled, storage())
    model.load_state_dict(filled.state_dict(), strict=True, assign=True)
    assert model.gate_proj.scales.dtype == torch.float16
    assert model(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, 16)


def test_a_layer_that_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="gate_proj: 60 output features"):
        model = Tiny()
        model.gate_proj = nn.Linear(32, 60)
        prepare_quantized(model, storage().to_dict())


def test_a_small_model_keeps_a_working_copy_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = Tiny()
    with caplog.at_level(logging.INFO, logger="leveret.precision"):
        quantize_linears(model, storage())
    assert "int4 product of 2 layers: copy (0 MiB written out" in caplog.text


def test_a_large_model_reads_the_integers_and_falls_back_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leveret.precision.swap.WORKING_COPY_BYTES", 100)
    model = Tiny()
    quantize_linears(model, storage(group_size=32))
    assert {model.gate_proj.product, model.down_proj.product} == {"packed"}
    model = Tiny()
    quantize_linears(model, storage(group_size=16))
    assert model.gate_proj.product == "plain" and "not 16" in choose_product(model)
    assert choose_product(model, "copy").endswith("copy (asked for)")


def test_a_model_without_quantized_layers_has_nothing_to_choose() -> None:
    assert choose_product(Tiny()) == "no quantized layers"
