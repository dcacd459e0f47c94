"""The norm's rounding, the mixture of experts written out, and fresh weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.moe import SparseMixture, load_balancing_loss
from leveret.model.norm import RMSNorm


def random_norm(scales_in_float32: bool) -> tuple[RMSNorm, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(64, eps=1e-5, scales_in_float32=scales_in_float32).to(torch.bfloat16)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * torch.randn(64, generator=generator))
    return norm, torch.randn(8, 64, generator=generator).to(torch.bfloat16)


def test_the_norm_rounds_where_its_family_does() -> None:
    for scales_in_float32 in (False, True):
        norm, x = random_norm(scales_in_float32)
        normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        llama = norm.weight * normed.to(torch.bfloat16)
        aquila = (norm.weight.float() * normed).to(torch.bfloat16)
        assert not torch.equal(llama, aquila)
        assert torch.equal(norm(x), aquila if scales_in_float32 else llama)


def test_the_llama_norm_equals_transformers_in_bfloat16() -> None:
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    norm, x = random_norm(False)
    oracle = modeling.LlamaRMSNorm(64, eps=1e-5).to(torch.bfloat16)
    oracle.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), oracle(x))


def test_the_sparse_loop_equals_running_every_expert_on_every_token() -> None:
    torch.manual_seed(0)
    mixture = SparseMixture(16, 24, MoeConfig(num_experts=5, experts_per_token=2))
    x = torch.randn(2, 7, 16)
    probabilities = mixture.gate(x).softmax(-1)
    best, chosen = probabilities.topk(2)
    weights = torch.zeros_like(probabilities).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
    every = torch.stack([expert(x) for expert in mixture.experts], dim=-1)  # (B, T, H, E)
    torch.testing.assert_close(mixture(x), (every * weights.unsqueeze(2)).sum(-1))


def test_experts_that_were_replaced_or_are_watched_are_called() -> None:
    mixture = SparseMixture(16, 24, MoeConfig(num_experts=3, experts_per_token=2))
    x = torch.randn(2, 7, 16)
    expected = mixture(x)
    seen: list[int] = []
    watch = mixture.experts[1].up_proj.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    torch.testing.assert_close(mixture(x), expected)
    assert sum(seen) > 0
    watch.remove()
    mixture.experts[1].up_proj = nn.Sequential(mixture.experts[1].up_proj)
    torch.testing.assert_close(mixture(x), expected)
    mixture.experts[1].up_proj = nn.Linear(16, 24)  # with a bias
    assert not torch.allclose(mixture(x), expected)


def test_experts_called_one_by_one_see_their_tokens_alone_unless_gradients_are_taken() -> None:
    mixture = SparseMixture(16, 24, MoeConfig(num_experts=4, experts_per_token=2)).bfloat16()
    x = torch.randn(150, 16).bfloat16().requires_grad_()
    expected = mixture(x)
    expected.float().square().sum().backward()
    gradients = [x.grad, *(p.grad for p in mixture.parameters())]
    seen: list[int] = []
    for expert in mixture.experts:
        expert.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    with torch.no_grad():
        torch.testing.assert_close(mixture(x), expected, rtol=0.02, atol=0.01)
    assert sum(seen) == 2 * 150
    seen.clear()
    x.grad = None
    mixture.zero_grad()
    mixture(x).float().square().sum().backward()
    assert all(rows % 4 == 0 for rows in seen)
    for mine, wanted in zip([x.grad, *(p.grad for p in mixture.parameters())], gradients, strict=True):
        assert (mine - wanted).float().norm() <= 0.02 * wanted.float().norm()


def test_the_balancing_loss_is_smallest_when_even_and_ignores_padding() -> None:
    moe = MoeConfig(num_experts=4, experts_per_token=1)
    even = torch.eye(4).repeat(3, 1) * 20
    collapsed = F.one_hot(torch.zeros(12, dtype=torch.long), 4).float() * 20
    assert load_balancing_loss([even], moe).item() == pytest.approx(1.0)
    assert load_balancing_loss([collapsed], moe).item() == pytest.approx(4.0)
    both, counted = torch.cat([even, collapsed]), torch.arange(24) < 12
    assert load_balancing_loss([both], moe, counted).item() == pytest.approx(1.0)


def config(**fields: object) -> ModelConfig:
    sizes = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    return ModelConfig(**sizes | {"num_attention_heads": 4} | fields)  # type: ignore[arg-type]


def test_a_seed_gives_the_same_weights_and_another_seed_others() -> None:
    models = [Decoder(config()) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        init_weights(model, seed)
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_fresh_weights_have_the_deviation_of_the_config_and_less_into_the_stream() -> None:
    model = Decoder(config(initializer_range=0.1))
    init_weights(model, 0)
    assert model.embed_tokens.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert model.layers[0].self_attn.o_proj.weight.std().item() == pytest.approx(0.1 / 8**0.5, rel=0.05)
    assert bool((model.norm.weight == 1).all())


def test_a_tied_head_is_the_embedding_also_after_moving() -> None:
    model = Decoder(config(tie_word_embeddings=True))
    init_weights(model, 0)
    model.to(torch.bfloat16)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert len([name for name, _ in model.named_parameters() if "embed" in name or "head" in name]) == 1
