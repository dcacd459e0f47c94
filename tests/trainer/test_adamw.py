"""AdamW over flat masters: equal to PyTorch's and to the written-out twin, decay by rule, bf16 under fp32."""

import pytest
import torch
from torch import nn

from leveret.errors import CheckpointError
from leveret.trainer.adamw import AdamW, is_decayed, plain_adamw_
from leveret.trainer.config import TrainingConfig


class Toy(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 11)
        self.tied = nn.Linear(6, 11, bias=False)
        self.tied.weight = self.embed.weight

    def forward(self, ids):
        x = self.norm(self.embed(ids))
        return self.out(x) + self.tied(x)


def loss_of(model, step):
    ids = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model(ids).float().flatten(0, 1), ids.flatten().roll(1))


def ours(config, *, steps, dtype=torch.float32):
    model = Toy()
    optimizer = AdamW(model, config, dtype=dtype)
    for step in range(steps):
        optimizer.start_step()
        loss_of(model, step).backward()
        norm = float(optimizer.gradient_norm())
        optimizer.update(learning_rate=0.01 * (step + 1), gradient_norm=norm)
    return model, optimizer


def theirs(config, *, steps):
    model = Toy()
    groups = [
        {"params": [p for p in model.parameters() if is_decayed(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if not is_decayed(p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        optimizer.step()
    return model


@pytest.mark.parametrize("limit", [None, 0.05, 100.0])
def test_fp32_training_equals_torch_adamw_with_and_without_clipping(limit):
    config = TrainingConfig(max_grad_norm=limit, weight_decay=0.1)
    model, _ = ours(config, steps=12)
    for (name, mine), other in zip(model.named_parameters(), theirs(config, steps=12).parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7, msg=name)


def test_one_update_equals_the_plain_twin():
    config = TrainingConfig(max_grad_norm=None)
    generator = torch.Generator().manual_seed(0)
    _, optimizer = ours(config, steps=3)
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    optimizer.gradients.copy_(torch.randn(optimizer.gradients.shape, generator=generator))
    optimizer._filled = [True] * len(optimizer.slots)
    optimizer.update(learning_rate=0.02, gradient_norm=1.0)
    for slot in optimizer.slots:
        views = [slot.view(before[name]) for name in ("masters", "exp_avg", "exp_avg_sq")]
        weight, average, square = views
        plain_adamw_(
            weight, slot.view(optimizer.gradients), average, square, step=4, learning_rate=0.02,
            betas=config.betas, eps=config.eps, weight_decay=0.1 if is_decayed(slot.parameter) else 0.0,
        )  # fmt: skip
        torch.testing.assert_close(slot.parameter.detach(), weight, rtol=1e-6, atol=1e-7)


def test_norms_and_biases_are_not_decayed_and_matrices_are():
    config = TrainingConfig(weight_decay=0.5, max_grad_norm=None)
    model = Toy()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = AdamW(model, config, dtype=torch.float32)
    optimizer.start_step()
    optimizer.update(learning_rate=0.1, gradient_norm=float(optimizer.gradient_norm()))  # gradient zero: only decay
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"embed.weight", "out.weight"}
    torch.testing.assert_close(model.out.weight.detach(), before["out.weight"] * 0.95)


def test_bf16_weights_are_the_rounding_of_masters_that_keep_small_updates():
    config = TrainingConfig(weight_decay=0.0, max_grad_norm=None)
    model, optimizer = ours(config, steps=5, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert torch.equal(optimizer.weights, optimizer.masters.bfloat16())
    assert not torch.equal(optimizer.weights.float(), optimizer.masters)


def test_gradients_of_micro_batches_add_up_in_fp32():
    model = Toy()
    optimizer = AdamW(model, TrainingConfig(), dtype=torch.bfloat16)
    total = torch.zeros(11, 6)
    optimizer.start_step()
    for step in range(6):
        model.zero_grad()
        single = torch.autograd.grad(loss_of(model, step), model.out.weight)[0]
        total += single.float()
        loss_of(model, step).backward()
    optimizer.gradient_norm()
    slot = next(slot for slot in optimizer.slots if slot.name == "out.weight")
    torch.testing.assert_close(slot.view(optimizer.gradients), total, rtol=1e-6, atol=1e-7)


def test_a_parameter_no_token_reached_has_a_zero_gradient_not_the_last_step_s():
    model = Toy()
    optimizer = AdamW(model, TrainingConfig(), dtype=torch.float32)
    optimizer.start_step()
    loss_of(model, 0).backward()
    assert optimizer.gradient_norm() > 0
    optimizer.start_step()
    assert optimizer.gradient_norm() == 0


def test_frozen_parameters_stay_bit_identical_but_take_the_model_s_dtype():
    model = Toy()
    model.norm.requires_grad_(False)
    nn.init.normal_(model.norm.weight)
    kept = model.norm.weight.detach().clone()
    optimizer = AdamW(model, TrainingConfig(), dtype=torch.bfloat16)
    optimizer.start_step()
    loss_of(model, 0).backward()
    optimizer.update(learning_rate=0.1, gradient_norm=float(optimizer.gradient_norm()))
    assert model.norm.weight.dtype == torch.bfloat16
    assert torch.equal(model.norm.weight, kept.bfloat16())
    assert "norm.weight" not in optimizer.layout()


def test_restoring_into_another_model_names_the_first_parameter_that_differs():
    _, optimizer = ours(TrainingConfig(), steps=1)
    other = nn.Sequential(nn.Linear(3, 4))
    state, layout = optimizer.state(), optimizer.layout()
    with pytest.raises(CheckpointError, match=r"of another model or optimizer: 7 parameters differ, first 0\.bias"):
        AdamW(other, TrainingConfig(), dtype=torch.float32).restore(state, updates=1, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_spared_decay_when_asked(dtype):
    config = TrainingConfig(weight_decay=0.5, max_grad_norm=None, decay_embeddings=False)
    model = nn.ModuleDict({"embed_tokens": nn.Embedding(11, 6), "lm_head": nn.Linear(6, 11, bias=False)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = AdamW(model, config, dtype=dtype)
    optimizer.start_step()
    optimizer.update(learning_rate=0.1, gradient_norm=float(optimizer.gradient_norm()))
    assert torch.equal(model.embed_tokens.weight, before["embed_tokens.weight"].to(dtype))
    torch.testing.assert_close(model.lm_head.weight.detach(), (before["lm_head.weight"] * 0.95).to(dtype))
