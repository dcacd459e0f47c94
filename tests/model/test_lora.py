"""LoRA put on from outside: peft's numbers, a frozen base, rules that find what they name, and nothing at the start."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leveret.errors import ConfigError
from leveret.kernels.low_rank import draw_kept, masked
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.lora import LoraLinear, LoraSettings, init_lora, lora_modules, wrap
from leveret.model.lora_rules import match_targets, shapes_of, shortest_targets
from leveret.model.lora_targets import add_lora, linears_by_stored_name
from leveret.precision.int8 import Int8Linear

peft = pytest.importorskip("peft", reason="the oracle of this file")

SETTINGS = LoraSettings(rank=4, alpha=8)


def build(family: str = "mistral", **changes: Any) -> Decoder:
    moe = MoeConfig(num_experts=4, experts_per_token=2) if family == "mixtral" else None
    config = ModelConfig(family=family, vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, moe=moe, **changes)  # fmt: skip
    model = Decoder(config).eval()
    init_weights(model, 0)
    return model


def disturb(model: nn.Module) -> None:
    """Make every adapter do something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in lora_modules(model).values():
            module.lora_B.normal_(0, 0.1, generator=generator)


def peft_twin(base: nn.Linear, ours: LoraLinear, **options: Any) -> nn.Module:
    """peft's layer over the same base with the same numbers."""
    settings = ours.settings
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, use_rslora=settings.rslora,
                             use_dora=settings.dora, target_modules=["linear"], **options)  # fmt: skip
    model = peft.get_peft_model(nn.ModuleDict({"linear": copy.deepcopy(base)}), config)
    layer = model.base_model.model["linear"]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(ours.lora_A)
        layer.lora_B["default"].weight.copy_(ours.lora_B)
        if ours.magnitude is not None:
            layer.lora_magnitude_vector["default"].weight.copy_(ours.magnitude)
    return layer


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}, {"dora": True, "rslora": True}])
def test_values_and_gradients_are_those_of_peft(options: dict[str, bool], bias: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(24, 40, bias=bias)
    ours = LoraLinear(copy.deepcopy(base), LoraSettings(rank=4, alpha=8, **options))
    init_lora("it", [ours], seed=0)
    with torch.no_grad():
        ours.lora_B.normal_()
        if ours.magnitude is not None:
            ours.magnitude.mul_(1.1)
    theirs = peft_twin(base, ours)
    x = torch.randn(3, 7, 24)
    results = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        y = layer(given)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        results.append((y.detach(), given.grad))
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.lora_A.grad, theirs.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.lora_B.grad, theirs.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-4)
    if ours.magnitude is not None:
        wanted = theirs.lora_magnitude_vector["default"].weight.grad
        torch.testing.assert_close(ours.magnitude.grad, wanted, rtol=1e-4, atol=1e-4)
    assert base.weight.grad is None and ours.base.weight.grad is None


class OurDraws(nn.Module):
    """Dropout that leaves out what ours leaves out, and is not the Identity that peft has a short way for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return masked(x, draw_kept(x, 0.5)) / 0.5 if self.training else x


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_falls_on_the_change_as_in_peft_and_only_in_training(dora: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(24, 40, bias=False)
    ours = LoraLinear(copy.deepcopy(base), LoraSettings(rank=4, alpha=8, dropout=0.5, dora=dora))
    init_lora("it", [ours], seed=0)
    with torch.no_grad():
        ours.lora_B.normal_()
    theirs = peft_twin(base, ours, lora_dropout=0.5)
    theirs.lora_dropout["default"] = OurDraws()
    x = torch.randn(3, 24)
    torch.manual_seed(5)
    trained = ours.train()(x)
    torch.manual_seed(5)
    torch.testing.assert_close(trained, theirs.train()(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
    assert not torch.equal(ours(x), trained)


def test_the_weight_of_a_wrapped_linear_is_what_it_multiplies_by() -> None:
    for dora in (False, True):
        ours = LoraLinear(nn.Linear(24, 40, bias=False), LoraSettings(rank=4, alpha=8, dora=dora))
        init_lora("it", [ours], seed=0)
        with torch.no_grad():
            ours.lora_B.normal_()
        x = torch.randn(5, 24)
        torch.testing.assert_close(x @ ours.weight.t(), ours(x), rtol=1e-5, atol=1e-5)


def test_an_adapter_changes_nothing_before_it_is_trained() -> None:
    model = build()
    ids = torch.arange(20).view(2, 10)
    before = model(ids)
    add_lora(model, SETTINGS, "all-linear", seed=0)
    assert torch.equal(model(ids), before)


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    few, many, other = build(), build(), build()
    add_lora(few, SETTINGS, ["v_proj"], seed=1)
    add_lora(many, SETTINGS, "all-linear", seed=1)
    add_lora(other, SETTINGS, "all-linear", seed=2)
    one, two, three = (model.layers[1].self_attn.v_proj.lora_A for model in (few, many, other))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert one.abs().max() <= 1 / 32**0.5 and one.std() > 0.5 / 32**0.5


def test_only_the_adapter_is_trained_and_no_gradient_of_the_base_is_computed() -> None:
    model = build()
    add_lora(model, SETTINGS, ["down_proj"], seed=0)
    disturb(model)
    model.train()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(names) == 4 and all(name.rpartition(".")[2] in ("lora_A", "lora_B") for name in names)
    ids = torch.arange(20).view(2, 10)
    with FlopCounterMode(display=False) as forward:
        loss = model(ids).square().mean()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert backward.get_total_flops() < 1.1 * forward.get_total_flops()  # with weight gradients it is twice as much


def test_a_quantized_linear_that_can_only_be_called_is_wrapped_as_well() -> None:
    torch.manual_seed(0)
    quantized = Int8Linear.from_linear(nn.Linear(32, 16, bias=False), group_size=16)
    holder = nn.ModuleDict({"it": quantized})
    (wrapped,) = wrap(holder, ("it",), SETTINGS)
    init_lora("it", [wrapped], seed=0)
    with torch.no_grad():
        wrapped.lora_B.normal_()
    x = torch.randn(3, 32, requires_grad=True)
    y = wrapped(x)
    dense = quantized.dequantize() + SETTINGS.scale * wrapped.lora_B @ wrapped.lora_A
    torch.testing.assert_close(y, x @ dense.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], dense.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)


RULES = [
    ("mistral", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, 14),
    ("mistral", ["q_proj", "v_proj"], {"q_proj", "v_proj"}, 4),
    ("mistral", ["layers.1.self_attn.q_proj"], {"q_proj"}, 1),
    ("mistral", r".*\.1\.self_attn\.[qk]_proj", {"q_proj", "k_proj"}, 2),
    ("mistral", ["lm_head"], {"lm_head"}, 1),
    ("lingowhale", "all-linear", {"qkv_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, 10),
    ("lingowhale", ["qkv_proj"], {"qkv_proj"}, 2),
    ("mixtral", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"}, 2 * (4 + 3 * 4)),
    ("mixtral", ["w1", "w3"], {"w1", "w3"}, 16),
    ("mixtral", ["gate_proj"], {"w1"}, 8),
    ("mixtral", ["gate"], {"gate"}, 2),
]


@pytest.mark.parametrize(("family", "rule", "endings", "number"), RULES)
def test_rules_find_what_they_name(family: str, rule: Any, endings: set[str], number: int) -> None:
    model = build(family)
    found = add_lora(model, SETTINGS, rule, seed=0)
    assert {name.rpartition(".")[2] for name in found} == endings
    assert len(found) == number
    assert {model.get_submodule(part) for name in found for part in linears_by_stored_name(model)[name]} == set(
        lora_modules(model).values()
    )


@pytest.mark.parametrize(("family", "rule"), [row[:2] for row in RULES])
def test_rules_are_written_for_peft_in_few_words_that_mean_the_same(family: str, rule: Any) -> None:
    there = linears_by_stored_name(build(family))
    chosen = match_targets(there, rule)
    short = shortest_targets(there, chosen)
    assert match_targets(there, short) == chosen
    assert len(short) <= 7


@pytest.mark.parametrize("family", ["mistral", "lingowhale", "mixtral"])
def test_shapes_are_known_without_a_model(family: str) -> None:
    model = build(family)
    there = linears_by_stored_name(model)
    shapes = shapes_of(model.config)
    assert set(shapes) == set(there)
    for stored, parts in there.items():
        linears = [model.get_submodule(part) for part in parts]
        assert shapes[stored] == (linears[0].in_features, sum(linear.out_features for linear in linears))


def test_parts_of_a_fused_matrix_share_what_the_file_has_once() -> None:
    model = build("lingowhale")
    add_lora(model, SETTINGS, ["qkv_proj"], seed=0)
    attention = model.layers[0].self_attn
    assert attention.q_proj.lora_A is attention.k_proj.lora_A is attention.v_proj.lora_A
    assert sum(name.endswith("lora_A") for name, _ in model.named_parameters()) == 2


@pytest.mark.parametrize("rule", [["q_porj"], ["q_proj", "wq"], r".*\.attention\..*", ["proj"]])
def test_a_rule_that_matches_nothing_is_refused_with_the_names_there_are(rule: Any) -> None:
    model = build()
    with pytest.raises(ConfigError, match=r"down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"):
        add_lora(model, SETTINGS, rule, seed=0)
    assert not lora_modules(model)


@pytest.mark.parametrize(("rule", "meant"), [("q_proj", "[q_proj]"), ("q_porj", "[q_proj]")])
def test_a_name_that_is_written_as_a_pattern_is_told_how_names_are_written(rule: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        add_lora(build(), SETTINGS, rule, seed=0)
    assert "one regular expression for whole names" in caught.value.message
    assert caught.value.hint == f"names are written as a list: {meant}"


def test_a_broken_pattern_and_an_empty_list_are_refused() -> None:
    for rule in ("(", []):
        with pytest.raises(ConfigError, match=r"no regular expression|no targets"):
            add_lora(build(), SETTINGS, rule, seed=0)


def test_a_mixture_with_adapters_on_its_experts_gives_the_same_as_with_them_merged() -> None:
    model = build("mixtral")
    add_lora(model, SETTINGS, "all-linear", seed=0)
    disturb(model)
    ids = torch.arange(20).view(2, 10)
    adapted = model(ids)
    for name, module in lora_modules(model).items():
        merged = nn.Linear(module.in_features, module.out_features, bias=False)
        merged.weight = nn.Parameter(module.weight.detach())
        model.set_submodule(name, merged)
    torch.testing.assert_close(model(ids), adapted, rtol=1e-4, atol=1e-5)
