"""Lean AdamW: equal to bitsandbytes and to plain AdamW where it should be, small in memory, and deterministic."""

import itertools
import warnings

import pytest
import torch
from torch import nn

from leveret.config import parse_config
from leveret.errors import CheckpointError, ConfigError, NonFiniteLoss
from leveret.trainer.adamw import AdamW
from leveret.trainer.batches import BatchSource
from leveret.trainer.config import TrainingConfig
from leveret.trainer.lean_adamw import LeanAdamW
from leveret.trainer.objective import CausalLoss
from leveret.trainer.optimizer import build_optimizer
from leveret.trainer.step import optimizer_step

BACKWARD = {"optimizer_in_backward": True, "max_grad_norm": None, "rows_per_step": 4, "micro_batch_rows": 4}


class Toy(nn.Module):
    """Two matrices large enough to be compressed, one of them not a whole number of blocks, and a vector."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(101, 48)
        self.inner = nn.Linear(48, 96)
        self.out = nn.Linear(96, 101, bias=False)

    def forward(self, ids):
        return self.out(torch.tanh(self.inner(self.embed_tokens(ids))))


def loss_of(model, step):
    ids = torch.randint(0, 101, (4, 16), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model(ids).float().flatten(0, 1), ids.flatten().roll(1))


def trained(steps=8, *, dtype=torch.float32, seed=0, learning_rate=1e-2, **changes):
    model, config = Toy(), TrainingConfig(**{"max_grad_norm": None, **changes})
    optimizer = LeanAdamW(model, config, dtype=dtype, seed=seed)
    for step in range(steps):
        optimizer.start_step(learning_rate=learning_rate)
        loss_of(model, step).backward()
        optimizer.update(learning_rate=learning_rate, gradient_norm=float(optimizer.gradient_norm()))
    return model, optimizer


def flat(model):
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def plain(steps=8, dtype=torch.float32, **changes):
    model = Toy()
    optimizer = AdamW(model, TrainingConfig(**{"max_grad_norm": None, **changes}), dtype=dtype)
    for step in range(steps):
        optimizer.start_step()
        loss_of(model, step).backward()
        optimizer.update(learning_rate=1e-2, gradient_norm=float(optimizer.gradient_norm()))
    return model


def nearest(numbers, code, scales, codes, block):
    """What bitsandbytes' GPU kernel does; its CPU kernel looks small numbers up coarsely."""
    blocks = nn.functional.pad(numbers.flatten(), (0, -numbers.numel() % block)).view(-1, block)
    scales.copy_(blocks.abs().amax(1))
    shares = (blocks / scales.clamp(min=1e-38)[:, None]).flatten()[: numbers.numel()]
    codes.copy_((shares[:, None] - code).abs().argmin(1).to(torch.uint8).view(codes.shape))


def test_8bit_averages_give_the_weights_of_bitsandbytes(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bitsandbytes = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("bitsandbytes.backends.cpu.ops._quant_blockwise_fp32_direct", nearest)
    mine, _ = trained(steps=12, optimizer="adamw_8bit", weight_decay=0.1)
    model = Toy()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    theirs = bitsandbytes.optim.AdamW8bit(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step in range(12):
        theirs.zero_grad()
        loss_of(model, step).backward()
        theirs.step()
    moved = flat(model) - flat(Toy())
    assert (flat(mine) - flat(model)).norm() < 2e-3 * moved.norm()
    full = (flat(plain(steps=12, weight_decay=0.1)) - flat(model)).norm()
    assert full > 10 * (flat(mine) - flat(model)).norm(), "the comparison must see the 8 bits"


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"optimizer": "adamw_8bit"}, 0.1),
        ({"optimizer": "adamw_bf16"}, 0.05),
        ({"optimizer": "adamw_bf16", "stochastic_rounding": True}, 0.15),
        ({"optimizer": "adamw_8bit", "stochastic_rounding": True, **BACKWARD}, 0.25),
    ],
)
def test_each_saving_moves_the_weights_nearly_as_adamw_does(changes, tolerance):
    reference = flat(plain(dtype=torch.bfloat16)) - flat(Toy())
    moved = flat(trained(dtype=torch.bfloat16, **changes)[0]) - flat(Toy())
    assert (moved - reference).norm() < tolerance * reference.norm()
    assert not torch.equal(moved, reference)


def test_updates_in_backward_with_fp32_averages_are_those_after_it_to_the_bit():
    assert torch.equal(flat(plain()), flat(trained(**BACKWARD)[0]))
    after = trained(optimizer="adamw_8bit", stochastic_rounding=True, dtype=torch.bfloat16)[0]
    during = trained(optimizer="adamw_8bit", stochastic_rounding=True, dtype=torch.bfloat16, **BACKWARD)[0]
    assert torch.equal(flat(after), flat(during))


def test_pieces_do_not_show(monkeypatch):
    whole = trained(optimizer="adamw_8bit", weight_decay=0.3)[0]
    monkeypatch.setattr("leveret.trainer.lean_adamw.PIECE", 512)
    assert torch.equal(flat(whole), flat(trained(optimizer="adamw_8bit", weight_decay=0.3)[0]))


@pytest.mark.parametrize(
    ("changes", "bytes_a_number"),
    [
        ({"optimizer": "adamw_bf16"}, 14),
        ({"optimizer": "adamw_8bit"}, 12),
        ({"optimizer": "adamw_8bit", "stochastic_rounding": True}, 8),
        ({"optimizer": "adamw_8bit", "stochastic_rounding": True, **BACKWARD}, 4),
    ],
)
def test_memory_is_what_the_table_says(changes, bytes_a_number):
    model, optimizer = nn.Linear(1024, 256, bias=False), None
    optimizer = LeanAdamW(model, TrainingConfig(**{"max_grad_norm": None, **changes}), dtype=torch.bfloat16, seed=0)
    tensors = [optimizer.weights, optimizer.gradients, *optimizer.state().values()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors if tensor.numel()}
    assert sum(storages.values()) / 2**18 == pytest.approx(bytes_a_number, rel=0.01)


def test_stochastic_rounding_keeps_updates_that_bf16_rounding_loses():
    rates = {"learning_rate": 1e-5, "steps": 40, "dtype": torch.bfloat16, "weight_decay": 0.0}
    exact = flat(trained(**{**rates, "dtype": torch.float32})[0]) - flat(Toy())
    rounded = [flat(trained(stochastic_rounding=True, seed=seed, **rates)[0]) for seed in range(8)]
    start = flat(Toy().bfloat16())
    mean = torch.stack(rounded).mean(0) - start
    assert torch.sum(mean * exact) / exact.square().sum() == pytest.approx(1.0, abs=0.15)
    assert not torch.equal(rounded[0], rounded[1])


def test_the_rounding_depends_on_the_seed_and_the_update_only():
    settings = {"optimizer": "adamw_bf16", "stochastic_rounding": True, "dtype": torch.bfloat16}
    torch.manual_seed(1)
    first = flat(trained(**settings)[0])
    torch.manual_seed(2)
    assert torch.equal(first, flat(trained(**settings)[0]))
    assert not torch.equal(first, flat(trained(seed=1, **settings)[0]))


def test_parameter_clipping_bounds_each_parameter_s_own_gradient():
    free, bounded = trained(1, **BACKWARD), trained(1, max_parameter_grad_norm=1e-4, **BACKWARD)
    for slot in bounded[1].slots:
        # exp_avg after one step is (1 - beta1) times the gradient.
        average = bounded[1]._exp_avg.read(slot.start, slot.start + slot.parameter.numel())
        assert float(average.norm()) == pytest.approx(1e-5, rel=1e-2), slot.name
        assert free[1]._exp_avg.read(slot.start, slot.start + slot.parameter.numel()).norm() > average.norm()


def test_a_gradient_that_is_not_finite_changes_nothing_of_its_parameter():
    model, optimizer = trained(2, **BACKWARD)
    before = model.out.weight.detach().clone()
    optimizer.start_step(learning_rate=1e-2)
    (loss_of(model, 3) + torch.inf * model.out.weight[0, 0]).backward()
    assert not torch.isfinite(optimizer.gradient_norm())
    assert torch.equal(before, model.out.weight)


def test_a_loss_that_is_not_finite_never_reaches_a_backward_that_would_update(new_model, new_order):
    config = TrainingConfig(num_epochs=1, **BACKWARD)
    model = new_model()
    source = BatchSource(new_order(), config, rows_in_one_epoch=40)
    optimizer = build_optimizer(model, config, dtype=torch.float32, seed=0)
    before = flat(model)
    objective = CausalLoss(model)
    with pytest.raises(NonFiniteLoss, match="weights were not updated"):
        optimizer_step(lambda b: objective(b) * torch.nan, source.step(0), optimizer, step=0, learning_rate=1.0)
    assert torch.equal(before, flat(model))
    with pytest.raises(NonFiniteLoss, match="go on from a checkpoint"):
        optimizer_step(lambda b: Spoilt.apply(objective(b)), source.step(0), optimizer, step=0, learning_rate=1.0)


class Spoilt(torch.autograd.Function):
    """A finite loss with a gradient that is not."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


def test_state_comes_back_bit_for_bit_and_another_layout_is_refused():
    settings = {"optimizer": "adamw_8bit", "stochastic_rounding": True, "dtype": torch.bfloat16}
    model, optimizer = trained(3, **settings)
    other, fresh = trained(0, **settings)
    fresh.restore(optimizer.state(), updates=optimizer.updates, layout=optimizer.layout())
    for step in (3, 4):
        for one, state in ((model, optimizer), (other, fresh)):
            state.start_step(learning_rate=1e-2)
            loss_of(one, step).backward()
            state.update(learning_rate=1e-2, gradient_norm=float(state.gradient_norm()))
    assert torch.equal(flat(model), flat(other))
    with pytest.raises(CheckpointError, match="another model or optimizer"):
        fresh.restore({}, updates=1, layout={**fresh.layout(), "out.weight": [0, 7, 7]})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"stochastic_rounding": True, "precision": "fp32"}, "precision is fp32"),
        ({"stochastic_rounding": True, "optimizer": "muon"}, "optimizer is muon"),
        ({"max_parameter_grad_norm": 1.0}, "max_grad_norm"),
        ({**BACKWARD, "max_grad_norm": 1.0}, "max_grad_norm: null"),
        ({**BACKWARD, "micro_batch_rows": 2}, "one micro-batch"),
        ({**BACKWARD, "optimizer": "muon"}, "needs an adamw"),
    ],
)
def test_what_cannot_work_together_is_refused_by_name(data, words):
    with pytest.raises(ConfigError, match=words):
        parse_config(TrainingConfig, data, source="test")


def test_tied_weights_are_updated_once_in_backward(new_model, new_order):
    config = TrainingConfig(num_epochs=1, precision="fp32", **BACKWARD)
    seen = []
    for changes in (BACKWARD, {**BACKWARD, "optimizer_in_backward": False}):
        config = TrainingConfig(num_epochs=1, precision="fp32", **changes)
        model = new_model()
        optimizer = build_optimizer(model, config, dtype=torch.float32, seed=0)
        source = BatchSource(new_order(), config, rows_in_one_epoch=40)
        for step in range(3):
            optimizer_step(CausalLoss(model), source.step(step), optimizer, step=step, learning_rate=1e-2)
        optimizer.close()
        seen.append(flat(model))
    for one, other in itertools.pairwise(seen):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_updates_in_backward_of_several_processes_are_refused():
    config = TrainingConfig(**BACKWARD)
    with pytest.raises(ConfigError, match="several processes"):
        LeanAdamW(Toy(), config, dtype=torch.float32, seed=0, sum_over_processes=lambda gradient: None)
