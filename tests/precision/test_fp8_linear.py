"""Linears in 8 bits: their three products, which of a model's Linears they are, and that nothing of them stays."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leveret.errors import ConfigError
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.precision.fp8_format import E4M3, E5M2, amax_of, cast, scale_of
from leveret.precision.fp8_linear import Fp8Linear, Rule, choose, fp8_linears
from leveret.precision.fp8_product import multiply_emulated, multiply_scaled
from leveret.precision.fp8_scaling import Recipe

CURRENT = Recipe(kind="current")


def decoder(**changes):
    sizes = {
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    model = Decoder(ModelConfig(**{**sizes, **changes}))
    init_weights(model, 0)
    return model.train()


def written_out(tensor, to):
    """What is left of a tensor that is cast by its own amax."""
    return cast(tensor, scale_of(amax_of(tensor), to.largest, margin=0, otherwise=1.0), to).written_out()


@pytest.mark.parametrize("multiply", [multiply_emulated, multiply_scaled])
@pytest.mark.parametrize("bias", [False, True])
def test_the_three_products_are_those_of_the_rounded_tensors(multiply, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48, bias=bias))
    x, gradient = torch.randn(2, 7, 32, requires_grad=True), torch.randn(2, 7, 48)
    with fp8_linears(model, ["0"], CURRENT, multiply):
        y = model(x)
        y.backward(gradient)
    x8, w8 = written_out(x.detach(), E4M3), written_out(model[0].weight.detach(), E4M3)
    g8 = written_out(gradient, E5M2).flatten(0, 1)
    expected = F.linear(x8, w8, model[0].bias)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.flatten(0, 1), g8 @ w8, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[0].weight.grad, g8.t() @ x8.flatten(0, 1), rtol=1e-5, atol=1e-5)
    if bias:
        torch.testing.assert_close(model[0].bias.grad, gradient.sum((0, 1)))
    exact = F.linear(x, model[0].weight, model[0].bias).detach()
    assert (
        0.005 < float((y.detach() - exact).norm() / exact.norm()) < 0.05
    )  # it is rounded, and not by more than it should


def test_a_frozen_weight_gets_no_gradient_and_passes_one_on():
    model = nn.Sequential(nn.Linear(32, 16).requires_grad_(False))
    x = torch.randn(3, 32, requires_grad=True)
    with fp8_linears(model, ["0"], CURRENT, multiply_emulated):
        model(x).sum().backward()
    assert model[0].weight.grad is None
    assert x.grad.abs().sum() > 0


def test_recomputed_activations_give_the_same_gradients():
    torch.manual_seed(0)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        model, x = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 16)), torch.randn(8, 32)
        with fp8_linears(model, ["0", "2"], Recipe(), multiply_emulated):
            out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) if recompute else model(x)
            out.square().sum().backward()
        gradients.append(model[0].weight.grad)
    assert torch.equal(*gradients)


def test_outside_training_the_layer_is_the_ordinary_one():
    model, x = nn.Sequential(nn.Linear(32, 32)), torch.randn(4, 32)
    exact = model(x)
    with fp8_linears(model, ["0"], CURRENT, multiply_emulated) as scaling:
        assert torch.equal(model.eval()(x), exact)
        assert not scaling.amax.any()
        assert not torch.equal(model.train()(x), exact)


def test_a_model_is_what_it_was_afterwards_with_the_parameters_it_then_has():
    model = decoder()
    before = dict(model.named_modules())
    names, parameters = list(model.state_dict()), dict(model.named_parameters())
    chosen, _ = choose(model, Rule())
    with fp8_linears(model, chosen, Recipe(), multiply_emulated):
        assert list(model.state_dict()) == names
        assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
        assert {name for name, module in model.named_modules() if isinstance(module, Fp8Linear)} == set(chosen)
        replaced = nn.Parameter(torch.zeros(32, 32))
        model.layers[0].self_attn.q_proj.weight = replaced
        model.eval()
    assert all(before[name] is module for name, module in model.named_modules())
    assert model.layers[0].self_attn.q_proj.weight is replaced
    assert not model.layers[1].mlp.up_proj.training


def test_head_and_embedding_stay_and_all_other_linears_are_swapped():
    chosen, kept = choose(decoder(), Rule())
    assert kept == {"the head": ["lm_head"]}
    assert len(chosen) == 4 * 7


def test_a_router_and_its_experts_stay():
    chosen, kept = choose(decoder(family="mixtral", moe=MoeConfig(num_experts=2, experts_per_token=1)), Rule())
    assert {name.rpartition(".")[2] for name in chosen} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {reason: len(names) for reason, names in kept.items()} == {"the head": 1, "routers": 4, "experts": 4 * 6}


def test_layers_names_and_odd_sizes_stay_as_asked():
    chosen, kept = choose(decoder(), Rule(first_layers=1, last_layers=2, names=["*.down_proj"]))
    assert chosen == [
        name for name, module in decoder().named_modules()
        if isinstance(module, nn.Linear) and name.startswith("layers.1.") and not name.endswith("down_proj")
    ]  # fmt: skip
    assert len(kept["first and last layers"]) == 3 * 7
    assert kept["asked for"] == ["layers.1.mlp.down_proj"]
    _, kept = choose(decoder(intermediate_size=40), Rule())
    assert len(kept["sizes that are no multiple of 16"]) == 4 * 3


def test_a_pattern_without_effect_and_a_model_without_linears_are_refused():
    with pytest.raises(ConfigError, match=r"'layer\.0\.\*' matches no Linear"):
        choose(decoder(), Rule(names=["layer.0.*"]))
    with pytest.raises(ConfigError, match="no Linear of the model can be multiplied in FP8"):
        choose(decoder(hidden_size=24, num_attention_heads=2, num_key_value_heads=1), Rule())


def test_the_gradient_of_a_model_is_near_that_of_full_precision():
    ids = torch.randint(0, 61, (2, 24), generator=torch.Generator().manual_seed(0))
    gradients = []
    for fp8 in (False, True):
        model = copy.deepcopy(decoder())
        chosen = choose(model, Rule())[0] if fp8 else []
        with fp8_linears(model, chosen, Recipe(), multiply_emulated):
            F.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1).flatten()).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    cosine = float(F.cosine_similarity(*gradients, dim=0))
    assert 0.99 < cosine < 1 - 1e-6
