"""The compiled decode step against the decoder's modules: dense and quantized weights, windows, rows of any lengths."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from leveret.engine.compiled_step import CompiledStep
from leveret.model.cache import KVCache
from leveret.model.config import ModelConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.linear import QuantizedLinear
from leveret.precision.swap import choose_product, quantize_linears

CONFIG = ModelConfig(
    vocab_size=101, hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64,
)  # fmt: skip


def a_decoder(config: ModelConfig = CONFIG) -> Decoder:
    generator = torch.Generator().manual_seed(3)
    model = Decoder(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.1 * noise if parameter.ndim == 1 else noise * 0.08)
    return model


def filled(model: Decoder, lengths: list[int], *, capacity: int = 80) -> KVCache:
    """A cache after a right-padded prefill of rows of these lengths."""
    cache = KVCache(model.config, len(lengths), capacity, model.embed_tokens.weight.dtype)
    generator = torch.Generator().manual_seed(len(lengths))
    model.hidden(torch.randint(0, 101, (len(lengths), max(lengths)), generator=generator), cache=cache)
    cache.lengths = torch.tensor(lengths)
    return cache


@torch.inference_mode()
def agreement(model: Decoder, lengths: list[int], *, steps: int = 5, kept: float = 1e-2) -> tuple[float, float]:
    """How far modules and compiled step, both in bf16, are from the same weights in fp32: relative errors."""
    exact = a_decoder(model.config) if not any("qweight" in name for name, _ in model.named_buffers()) else model
    half = model.to(torch.bfloat16)
    step = CompiledStep.of(half)
    assert step is not None
    exact = _in_float32(half) if exact is not model else exact
    caches = [filled(half, lengths), filled(half, lengths), filled(exact, lengths)]
    found: list[list[Tensor]] = [[], [], []]
    ids = torch.randint(0, 101, (steps, len(lengths)), generator=torch.Generator().manual_seed(9))
    for row in ids:
        found[0].append(half(row[:, None], cache=caches[0])[:, -1])
        found[1].append(step(row, caches[1]))
        found[2].append(exact(row[:, None], cache=caches[2])[:, -1])
    assert caches[0].lengths.tolist() == caches[1].lengths.tolist() == [length + steps for length in lengths]
    modules, compiled, truth = (torch.stack(each).double() for each in found)
    for mine, theirs in zip(caches[1].keys + caches[1].values, caches[0].keys + caches[0].values, strict=True):
        assert (mine.double() - theirs.double()).norm() / theirs.double().norm() < kept
    scale = truth.norm() if exact is not half else modules.norm()
    reference = truth if exact is not half else modules
    return float((modules - reference).norm() / scale), float((compiled - reference).norm() / scale)


def _in_float32(half: Decoder) -> Decoder:
    wide = Decoder(half.config).eval().requires_grad_(False)
    wide.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    return wide


@pytest.mark.parametrize("lengths", [[12], [3, 12, 7], [5] * 8, list(range(1, 20))], ids=len)
@pytest.mark.parametrize("window", [None, 8])
def test_it_is_as_near_to_float32_as_the_modules(attention_build: str, lengths: list[int], window: int | None) -> None:
    modules, compiled = agreement(a_decoder(dataclasses.replace(CONFIG, sliding_window=window)), lengths)
    assert 1e-4 < compiled < max(1.25 * modules, 5e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 3, 12])
def test_quantized_weights_are_read_as_they_are_stored(build: str, bits: int, rows: int) -> None:
    model = a_decoder()
    storage = GptqStorage(bits=bits, group_size=32, symmetric=bits == 8)
    assert len(quantize_linears(model, storage, search=False)) == 14
    # Both round activations to 8 bits, each its own: what differed in the last bit of 16 may differ by one of 8.
    _, compiled = agreement(model, [7] * rows, kept=2e-2)
    assert 1e-4 < compiled < 2.5e-2


@torch.inference_mode()
def test_quantized_weights_in_an_order_of_their_own_and_exact_activations(build: str) -> None:
    models = [a_decoder() for _ in range(3)]
    for model in models:
        quantize_linears(model, GptqStorage(bits=4, group_size=32, symmetric=False, desc_act=True), search=False)
        for number, layer in enumerate(each for each in model.modules() if isinstance(each, QuantizedLinear)):
            order = torch.randperm(layer.in_features, generator=torch.Generator().manual_seed(number))
            layer.g_idx = layer.g_idx[order].contiguous()
    rounds, exact, wide = models
    choose_product(exact.to(torch.bfloat16))
    for layer in exact.modules():
        if isinstance(layer, QuantizedLinear):
            layer.activations = "exact"
    assert CompiledStep.of(exact) is None  # only rounding puts columns in order on the way
    step = CompiledStep.of(rounds.to(torch.bfloat16))
    assert step is not None
    ids = torch.tensor([5, 6, 7])
    found = step(ids, filled(rounds, [9] * 3)).double()
    truth = wide(ids[:, None], cache=filled(wide, [9] * 3))[:, -1].double()
    modules = exact(ids[:, None], cache=filled(exact, [9] * 3))[:, -1].double()
    assert (found - truth).norm() / truth.norm() < 3e-2
    assert (modules - truth).norm() / truth.norm() < 2e-2


@torch.inference_mode()
def test_a_row_of_a_quantized_model_is_the_same_bits_in_any_company(build: str) -> None:
    model = a_decoder(dataclasses.replace(CONFIG, vocab_size=104)).to(torch.bfloat16)
    assert quantize_linears(model, GptqStorage(bits=4, group_size=32, symmetric=True, lm_head=True), search=False)
    step = CompiledStep.of(model)
    assert step is not None
    cache = filled(model, [9] * 20)
    together = step(torch.arange(20), cache)
    for row in (0, 7, 19):
        cache = filled(model, [9] * 20)
        cache.select_rows([row])
        assert torch.equal(step(torch.tensor([row]), cache)[0], together[row])


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_scales_in_float32": True},
        {"rope": RopeConfig(kind="dynamic", factor=4.0), "max_position_embeddings": 16},
        {"num_key_value_heads": 4},
        {"intermediate_size": 192, "hidden_size": 96, "head_dim": 32},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_shapes_and_conventions(changes: dict[str, object]) -> None:
    modules, compiled = agreement(a_decoder(dataclasses.replace(CONFIG, **changes)), [20, 4])
    assert 1e-4 < compiled < max(1.25 * modules, 5e-3)


@torch.inference_mode()
def test_a_row_does_not_depend_on_the_few_beside_it(build: str) -> None:
    model = a_decoder().to(torch.bfloat16)
    step = CompiledStep.of(model)
    assert step is not None
    together = step(torch.tensor([5, 6, 7, 8]), filled(model, [9] * 4))
    for row in range(4):
        cache = filled(model, [9] * 4)
        cache.select_rows([row])
        assert torch.equal(step(torch.tensor([5 + row]), cache)[0], together[row])
