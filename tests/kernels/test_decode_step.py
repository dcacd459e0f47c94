"""The compiled decode step against the decoder's modules: dense and quantized weights, windows, rows of any lengths."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from leveret.engine.compiled_step import CompiledStep
from leveret.engine.step_parts import KnownWeights
from leveret.model.cache import KVCache
from leveret.model.config import ModelConfig, MoeConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.lora import LoraSettings, lora_modules
from leveret.model.lora_targets import add_lora
from leveret.model.paged_cache import Feed, PagedCache, PagedRows
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.int8 import Int8Linear
from leveret.precision.linear import QuantizedLinear
from leveret.precision.nf4 import NF4Linear
from leveret.precision.nf4_layout import Nf4Storage
from leveret.precision.swap import choose_product, quantizable, quantize_linears

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


def a_mixture(experts: int) -> Decoder:
    return a_decoder(dataclasses.replace(CONFIG, family="mixtral", moe=MoeConfig(num_experts=experts)))


def filled(model: Decoder, lengths: list[int], *, capacity: int = 80) -> KVCache:
    """A cache after a right-padded prefill of rows of these lengths."""
    cache = KVCache(model.config, len(lengths), capacity, model.embed_tokens.weight.dtype)
    generator = torch.Generator().manual_seed(len(lengths))
    model.hidden(torch.randint(0, 101, (len(lengths), max(lengths)), generator=generator), cache=cache)
    cache.lengths = torch.tensor(lengths)
    return cache


class Paged:
    """The same in blocks of 16 tokens, which lie in any order."""

    def __init__(self, model: Decoder, whole: KVCache) -> None:
        rows, width = len(whole.lengths), whole.capacity // 16
        self.cache = PagedCache(model.config, rows * width, 16, whole.keys[0].dtype)
        self.tables = (1 + torch.randperm(rows * width, generator=torch.Generator().manual_seed(1))).view(rows, width)
        for paged, plain in zip(self.cache.keys + self.cache.values, whole.keys + whole.values, strict=True):
            paged[self.tables] = plain.unflatten(2, (width, 16)).transpose(1, 2)
        self.lengths = whole.lengths.tolist()

    def feed(self, *ids: list[int], models: list[int] | None = None) -> PagedRows:
        """Some ids for each row, and whose they are; what is fed counts as kept."""
        feeds = [
            Feed(ids=new, start=start, table=table, planned_length=80, model=model)
            for new, start, table, model in zip(
                ids, self.lengths, self.tables.tolist(), models or [0] * len(ids), strict=True
            )
        ]
        self.lengths = [start + len(new) for start, new in zip(self.lengths, ids, strict=True)]
        return PagedRows(self.cache, feeds)

    def whole(self) -> list[Tensor]:
        """Keys, then values, of all layers as a cache in one piece has them."""
        return [each[self.tables].transpose(1, 2).flatten(2, 3) for each in self.cache.keys + self.cache.values]


@torch.inference_mode()
def agreement(
    model: Decoder, lengths: list[int], *, steps: int = 5, kept: float = 1e-2, typical: bool = False
) -> tuple[float, float]:
    """How far modules and compiled step, both in bf16, are from the same weights in fp32: relative errors.

    typical: of the token in the middle, not of all together; rounding may send a few to other experts.
    """
    exact = a_decoder(model.config) if not any("qweight" in name for name, _ in model.named_buffers()) else model
    half = model.to(torch.bfloat16)
    step = CompiledStep.of(half)
    assert step is not None
    exact = _in_float32(half) if exact is not model else exact
    caches = [filled(half, lengths), filled(exact, lengths)]
    paged = Paged(half, filled(half, lengths))
    found: list[list[Tensor]] = [[], [], []]
    ids = torch.randint(0, 101, (steps, len(lengths)), generator=torch.Generator().manual_seed(9))
    for row in ids:
        found[0].append(half(row[:, None], cache=caches[0])[:, -1])
        found[1].append(step(paged.feed(*row[:, None].tolist())))
        found[2].append(exact(row[:, None], cache=caches[1])[:, -1])
    assert caches[0].lengths.tolist() == paged.lengths == [length + steps for length in lengths]
    modules, compiled, truth = (torch.stack(each).double() for each in found)
    for mine, theirs in zip(paged.whole(), caches[0].keys + caches[0].values, strict=True):
        assert (mine.double() - theirs.double()).norm() / theirs.double().norm() < kept
    reference = truth if exact is not half else modules
    rows = [each.flatten(0, -2) if typical else each.reshape(1, -1) for each in (modules, compiled, reference)]
    errors = [(each - rows[2]).norm(dim=-1) / rows[2].norm(dim=-1) for each in rows[:2]]
    return float(errors[0].median()), float(errors[1].median())


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


@pytest.mark.parametrize("weights", ["bfloat16", "int4 exact", "int8 exact", "int4", "int8"])
@pytest.mark.parametrize("count", [2, 5, 9, 16, 21])
@torch.inference_mode()
def test_ids_that_are_guessed_get_the_bits_of_ids_fed_one_by_one(build: str, weights: str, count: int) -> None:
    model = a_decoder()
    if weights != "bfloat16":
        bits = int(weights[3])
        quantize_linears(model, GptqStorage(bits=bits, group_size=32, symmetric=bits == 8), search=False)
        choose_product(model.to(torch.bfloat16))
        for layer in model.modules():
            if isinstance(layer, QuantizedLinear):
                layer.activations = "exact" if "exact" in weights else "int8"
    half = model.to(torch.bfloat16)
    step = CompiledStep.of(half)
    assert step is not None
    start = filled(half, [7])
    ids = torch.randint(0, 101, (count,), generator=torch.Generator().manual_seed(2)).tolist()
    one_by_one, together = Paged(half, start), Paged(half, start)
    alone = torch.cat([step(one_by_one.feed([each])) for each in ids])
    guessed = step(together.feed(ids), as_alone=True)
    assert torch.equal(guessed, alone)
    assert all(torch.equal(*pair) for pair in zip(together.whole(), one_by_one.whole(), strict=True))


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
    found = step(Paged(rounds, filled(rounds, [9] * 3)).feed(*ids[:, None].tolist())).double()
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
    together = step(Paged(model, filled(model, [9] * 20)).feed(*([row] for row in range(20))))
    for row in (0, 7, 19):
        whole = filled(model, [9] * 20)
        whole.select_rows([row])
        assert torch.equal(step(Paged(model, whole).feed([row]))[0], together[row])


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
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("weights", ["bfloat16", "int4"])
@pytest.mark.parametrize("rows", [1, 3, 12])
def test_an_adapter_is_added_on_the_way(build: str, weights: str, rows: int, dora: bool) -> None:
    model = a_decoder()
    if weights == "int4":
        quantize_linears(model, GptqStorage(bits=4, group_size=32, symmetric=True), search=False)
    wide = copy.deepcopy(model)
    models = [model.to(torch.bfloat16), wide]
    for each in models:
        settings = LoraSettings(rank=5, alpha=20, dora=dora)
        add_lora(each, settings, ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"], seed=0)
        for number, layer in enumerate(lora_modules(each.eval()).values()):
            layer.lora_B.normal_(std=0.05, generator=torch.Generator().manual_seed(number))
            if layer.magnitude is not None:
                layer.magnitude.mul_(torch.linspace(0.5, 1.5, layer.out_features))
    step = CompiledStep.of(model)
    assert step is not None
    ids = torch.arange(3, 3 + rows)[:, None]
    found = step(Paged(model, filled(model, [9] * rows)).feed(*ids.tolist())).double()
    modules = model(ids, cache=filled(model, [9] * rows))[:, -1].double()
    truth = wide(ids, cache=filled(wide, [9] * rows))[:, -1].double()
    bare = step_without(model)(Paged(model, filled(model, [9] * rows)).feed(*ids.tolist())).double()
    error, theirs = ((each - truth).norm() / truth.norm() for each in (found, modules))
    assert (
        error
        < max(1.25 * theirs, 5e-3 if weights == "bfloat16" else 2.5e-2)
        < 0.1 * (bare - truth).norm() / truth.norm()
    )


def test_a_mixture_of_one_expert_is_one_too(build: str) -> None:
    moe = MoeConfig(num_experts=1, experts_per_token=1)
    modules, compiled = agreement(a_decoder(dataclasses.replace(CONFIG, family="mixtral", moe=moe)), [7] * 6)
    assert 1e-4 < compiled < max(1.25 * modules, 5e-3)


@pytest.mark.parametrize("lengths", [[12], [3, 12, 7], [5] * 8, list(range(1, 20))], ids=len)
def test_rows_visit_their_experts(build: str, lengths: list[int]) -> None:
    modules, compiled = agreement(a_mixture(experts=5), lengths, kept=0.1, typical=True)
    assert 1e-4 < compiled < max(1.25 * modules, 5e-3)


@torch.inference_mode()
@pytest.mark.parametrize("rows", [16, 40])
def test_a_row_of_a_mixture_is_the_same_bits_whoever_visits_its_experts(build: str, rows: int) -> None:
    """What the batch-invariant engine relies on: with many rows, only their being many matters."""
    model = a_mixture(experts=4).to(torch.bfloat16)
    step = CompiledStep.of(model)
    assert step is not None
    whole = filled(model, [9] * rows)
    among_others = step(Paged(model, whole).feed(*([5 + row] for row in range(rows))))
    whole = filled(model, [9] * rows)
    whole.select_rows([0] * 16)
    among_its_like = step(Paged(model, whole).feed(*([5] for _ in range(16))))
    assert torch.equal(among_its_like[0], among_others[0]) and torch.equal(among_its_like[15], among_others[0])
    assert not torch.equal(among_others[0], among_others[1])


@torch.inference_mode()
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 4, 20])
def test_quantized_experts_with_an_adapter(build: str, bits: int, rows: int) -> None:
    model = a_mixture(experts=4)
    quantize_linears(model, GptqStorage(bits=bits, group_size=32, symmetric=bits == 8), search=False)
    wide = copy.deepcopy(model)
    models = [model.to(torch.bfloat16), wide]
    for each in models:
        add_lora(each, LoraSettings(rank=3, alpha=9), ["gate_proj", "up_proj", "down_proj"], seed=0)
        for number, layer in enumerate(lora_modules(each.eval()).values()):
            layer.lora_B.normal_(std=0.05, generator=torch.Generator().manual_seed(number))
    step = CompiledStep.of(model)
    assert step is not None
    ids = torch.arange(3, 3 + rows)[:, None]
    together, one_by_one = Paged(model, filled(model, [9] * rows)), filled(model, [9] * rows)
    found = step(together.feed(*ids.tolist()))
    truth = wide(ids, cache=filled(wide, [9] * rows))[:, -1].double()
    errors = (found.double() - truth).norm(dim=1) / truth.norm(dim=1)
    assert errors.median() < 3e-2
    for row in {0, rows - 1}:
        whole = copy.deepcopy(one_by_one)
        whole.select_rows([row])
        assert torch.equal(step(Paged(model, whole).feed([3 + row]))[0], found[row]) or rows > 8


@torch.inference_mode()
def test_experts_that_are_stored_differently_go_through_the_modules() -> None:
    model = a_mixture(experts=2).to(torch.bfloat16)
    model.layers[0].mlp.experts[1].up_proj = Int8Linear.from_linear(
        model.layers[0].mlp.experts[1].up_proj, group_size=32
    )
    assert CompiledStep.of(model) is None


def step_without(model: Decoder) -> CompiledStep:
    """The step of the model under an adapter."""
    under = copy.deepcopy(model)
    for name, layer in lora_modules(under).items():
        under.set_submodule(name, layer.base)
    step = CompiledStep.of(under)
    assert step is not None
    return step


def with_nf4(model: Decoder, *, double: bool) -> tuple[Decoder, Decoder]:
    """The model in bfloat16 with its Linears in NF4, and the same numbers in float32."""
    half, wide = copy.deepcopy(model).to(torch.bfloat16), copy.deepcopy(model)
    for name, linear in quantizable(half, Nf4Storage(double_quantization=double)).items():
        stored = NF4Linear.from_linear(linear, Nf4Storage(double_quantization=double))
        half.set_submodule(name, stored)
        wide.get_submodule(name).weight = torch.nn.Parameter(stored.dequantize().float(), requires_grad=False)
    for table in ("embed_tokens", "lm_head"):
        wide.get_submodule(table).weight.copy_(half.get_submodule(table).weight)
    return half, wide


@torch.inference_mode()
@pytest.mark.parametrize("hidden", [128, 1024])
@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("rows", [1, 3, 6, 20])
def test_weights_are_looked_up_on_the_way(attention_build: str, rows: int, double: bool, hidden: int) -> None:
    sizes = {"hidden_size": hidden, "intermediate_size": hidden + 64, "num_hidden_layers": 256 // hidden or 1}
    half, wide = with_nf4(a_decoder(dataclasses.replace(CONFIG, **sizes)), double=double)
    step = CompiledStep.of(half)
    assert step is not None
    ids = torch.arange(3, 3 + rows)[:, None]
    found = step(Paged(half, filled(half, [9] * rows)).feed(*ids.tolist())).double()
    modules = half(ids, cache=filled(half, [9] * rows))[:, -1].double()
    truth = wide(ids, cache=filled(wide, [9] * rows))[:, -1].double()
    error, theirs = ((each - truth).norm() / truth.norm() for each in (found, modules))
    assert 1e-4 < error < max(1.25 * theirs, 5e-3)


@torch.inference_mode()
def test_experts_that_are_looked_up_with_an_adapter(build: str) -> None:
    moe = MoeConfig(num_experts=3)
    config = dataclasses.replace(CONFIG, family="mixtral", moe=moe, intermediate_size=192)
    half, wide = with_nf4(a_decoder(config), double=True)
    for each in (half, wide):
        add_lora(each, LoraSettings(rank=3, alpha=9), ["up_proj", "down_proj"], seed=0)
        for number, layer in enumerate(lora_modules(each.eval()).values()):
            layer.lora_B.normal_(std=0.05, generator=torch.Generator().manual_seed(number))
    step = CompiledStep.of(half)
    assert step is not None
    ids = torch.arange(3, 10)[:, None]
    found = step(Paged(half, filled(half, [9] * 7)).feed(*ids.tolist())).double()
    modules = half(ids, cache=filled(half, [9] * 7))[:, -1].double()
    truth = wide(ids, cache=filled(wide, [9] * 7))[:, -1].double()
    errors = [((each - truth).norm(dim=1) / truth.norm(dim=1)).median() for each in (found, modules)]
    assert 1e-4 < errors[0] < max(1.25 * errors[1], 5e-3)


@torch.inference_mode()
def test_rows_that_are_no_whole_blocks_go_through_the_modules() -> None:
    half, _ = with_nf4(a_decoder(), double=True)
    assert half.config.intermediate_size % 64 and CompiledStep.of(half) is None


@pytest.mark.parametrize("rows", [5, 8, 11])
def test_long_rows_of_weights(attention_build: str, rows: int) -> None:
    """From a thousand inputs on some builds multiply many rows otherwise."""
    model = a_decoder(dataclasses.replace(CONFIG, hidden_size=1024, intermediate_size=1056, num_hidden_layers=1))
    modules, compiled = agreement(model, [7] * rows, steps=2)
    assert 1e-4 < compiled < max(1.25 * modules, 5e-3)


@torch.inference_mode()
def test_a_row_among_many_does_not_depend_on_how_many(attention_build: str) -> None:
    model = a_decoder(dataclasses.replace(CONFIG, hidden_size=1024, intermediate_size=1056, num_hidden_layers=1))
    step = CompiledStep.of(model.to(torch.bfloat16))
    assert step is not None
    found = []
    for rows in (16, 23):
        whole = filled(model, [9] * 23)
        whole.select_rows(list(range(rows)))
        found.append(step(Paged(model, whole).feed(*([5 + row] for row in range(rows)))))
    assert torch.equal(found[0], found[1][:16])


@torch.inference_mode()
def test_a_row_does_not_depend_on_the_few_beside_it(build: str) -> None:
    model = a_decoder().to(torch.bfloat16)
    step = CompiledStep.of(model)
    assert step is not None
    cache = Paged(model, filled(model, [9] * 4))
    together = step(cache.feed([5], [6], [7], [8]))
    for row in range(4):
        whole = filled(model, [9] * 4)
        whole.select_rows([row])
        assert torch.equal(step(Paged(model, whole).feed([5 + row]))[0], together[row])


@torch.inference_mode()
@pytest.mark.parametrize("window", [None, 8])
def test_tokens_of_one_sequence_together_are_the_same_as_one_after_the_other(build: str, window: int | None) -> None:
    model = a_decoder(dataclasses.replace(CONFIG, sliding_window=window)).to(torch.bfloat16)
    step = CompiledStep.of(model)
    assert step is not None
    one, together = (Paged(model, filled(model, [14, 30])) for _ in range(2))
    singles = [torch.cat([step(one.feed([a], [b])) for a, b in ((5, 1), (6, 2))]).unflatten(0, (2, 2))]
    logits = step(together.feed([5, 6], [1, 2]))
    assert torch.equal(logits, singles[0].transpose(0, 1).flatten(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.whole(), together.whole(), strict=True))


def siblings(model: Decoder, ranks: dict[int, tuple[int, list[str]]]) -> dict[int, Decoder]:
    """The model as number 0, and others in the same memory with adapters of these ranks on these Linears."""
    models = {0: model}
    for number, (rank, targets) in ranks.items():
        shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
        models[number] = copy.deepcopy(model, shared)
        add_lora(models[number], LoraSettings(rank=rank, alpha=4 * rank), targets, seed=number)
        for place, layer in enumerate(lora_modules(models[number].eval()).values()):
            layer.lora_B.normal_(std=0.05, generator=torch.Generator().manual_seed(100 * number + place))
    return models


@torch.inference_mode()
@pytest.mark.parametrize("rows", [3, 8, 20])
@pytest.mark.parametrize("kind", ["bfloat16", "int4", "experts"])
def test_rows_of_different_models_get_what_their_own_adapters_add(attention_build: str, kind: str, rows: int) -> None:
    model = a_mixture(experts=4) if kind == "experts" else a_decoder()
    if kind != "bfloat16":
        quantize_linears(model, GptqStorage(bits=4, group_size=32, symmetric=True), search=False)
    block = ["gate_proj", "up_proj", "down_proj"]
    adapters = {4: (5, ["q_proj", "v_proj", *block]), 5: (2, ["v_proj", "o_proj", *block]), 9: (3, ["k_proj"])}
    models = siblings(model.to(torch.bfloat16), adapters)
    steps = CompiledStep.of_all(models, KnownWeights())
    assert set(steps) == set(models) and len(set(steps.values())) == 1
    numbers = [[0, 4, 5, 9][row % 4] for row in range(rows)]
    paged = Paged(model, filled(model, [9] * rows))
    found = steps[0](paged.feed(*([3 + row] for row in range(rows)), models=numbers))
    assert len({tuple(row.tolist()) for row in found[:4]}) == min(rows, 4)
    for number, other in models.items():
        alone = CompiledStep.of(other)
        assert alone is not None
        wanted = alone(Paged(model, filled(model, [9] * rows)).feed(*([3 + row] for row in range(rows))))
        mine = [row for row in range(rows) if numbers[row] == number]
        assert torch.equal(found[mine], wanted[mine])


@torch.inference_mode()
def test_models_share_a_step_only_where_they_share_the_memory() -> None:
    model = a_decoder().to(torch.bfloat16)
    models = siblings(model, {1: (2, ["q_proj"]), 2: (2, ["v_proj"]), 3: (2, ["q_proj"]), 4: (2, ["q_proj"])})
    models[2].lm_head.weight = torch.nn.Parameter(models[2].lm_head.weight.clone(), requires_grad=False)
    models[3].layers[0].register_forward_hook(lambda *_: None)
    models[4].layers[1].post_attention_layernorm.weight = torch.nn.Parameter(torch.ones(128, dtype=torch.bfloat16))
    models[5] = copy.deepcopy(model)
    steps = CompiledStep.of_all({number: each.eval() for number, each in models.items()}, KnownWeights())
    assert steps[0] is steps[1] and 3 not in steps
    assert len({id(step) for step in steps.values()}) == 4 and set(steps) == {0, 1, 2, 4, 5}


@torch.inference_mode()
def test_a_model_may_look_ids_up_in_a_table_of_its_own(build: str) -> None:
    model = a_decoder().to(torch.bfloat16)
    models = siblings(model, {1: (2, ["q_proj"])})
    models[1].embed_tokens.weight = torch.nn.Parameter(models[1].embed_tokens.weight.flip(0), requires_grad=False)
    steps = CompiledStep.of_all(models, KnownWeights())
    assert steps[0] is steps[1]
    found = steps[0](Paged(model, filled(model, [9] * 2)).feed([7], [7], models=[0, 1]))
    other = CompiledStep.of(models[1])
    assert other is not None
    wanted = other(Paged(model, filled(model, [9] * 2)).feed([7], [7]))
    assert torch.equal(found[1], wanted[1]) and not torch.equal(found[0], wanted[0])
