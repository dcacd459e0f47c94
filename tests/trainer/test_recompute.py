"""Recomputed layers: the same gradients to the bit, fewer saved numbers, and no trace afterwards."""

import pytest
import torch

from leveret.model.config import MoeConfig
from leveret.model.lora import LoraSettings, lora_modules
from leveret.model.lora_targets import add_lora
from leveret.trainer.batches import BatchSource
from leveret.trainer.config import TrainingConfig
from leveret.trainer.objective import CausalLoss
from leveret.trainer.recompute import recomputed_layers


def gradients(model, order, what):
    config = TrainingConfig(num_epochs=1, rows_per_step=4, micro_batch_rows=4)
    saved = []

    def note(tensor):
        saved.append(tensor.numel())
        return tensor

    batch = BatchSource(order, config, rows_in_one_epoch=len(order.rows)).step(0)[0]
    with recomputed_layers(model, what), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        torch.manual_seed(3)
        loss = CausalLoss(model)(batch)
        kept = sum(saved)
        loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), float(loss.detach()), kept


class Dropping(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, *more):
        return torch.nn.functional.dropout(self.inner(x, *more), 0.3, training=True)


@pytest.mark.parametrize("random", [False, True])
def test_gradients_and_loss_are_the_same_to_the_bit(new_model, new_order, random):
    results = []
    for what in ("nothing", "layers"):
        model = new_model()
        if random:  # an adapter's dropout, say
            for layer in model.layers:
                layer.mlp = Dropping(layer.mlp)
        results.append(gradients(model, new_order(), what))
    (plain, loss, kept), (recomputed, other_loss, other_kept) = results
    assert torch.equal(plain, recomputed)
    assert loss == other_loss
    assert other_kept < kept


def test_changes_inside_a_frozen_model_get_their_gradients(new_model, new_order):
    changed = []
    for what in ("nothing", "layers"):
        model = new_model()
        add_lora(model, LoraSettings(rank=2, alpha=4), "all-linear", seed=0)  # what the first layer reads is frozen
        batch = BatchSource(new_order(), TrainingConfig(), rows_in_one_epoch=40).step(0)[0]
        with recomputed_layers(model, what):
            CausalLoss(model)(batch).backward()
        changed.append([module.lora_B.grad for module in lora_modules(model).values()])
    assert len(changed[1]) == 14 and all(gradient.any() for gradient in changed[1])
    assert all(torch.equal(one, other) for one, other in zip(*changed, strict=True))


def test_names_and_forward_are_as_before_afterwards(new_model):
    model = new_model()
    names = [name for name, _ in model.named_parameters()]
    with recomputed_layers(model, "layers"):
        assert [name for name, _ in model.named_parameters()] == names
        assert "forward" in vars(model.layers[0])
    assert "forward" not in vars(model.layers[0])


def test_what_stays_on_is_refused_nowhere_but_changes_nothing_without_layers():
    plain = torch.nn.Linear(2, 2)
    with recomputed_layers(plain, "layers"):
        assert "forward" not in vars(plain)


def test_a_mixture_s_gradients_and_balance_are_the_same_when_its_layers_are_recomputed(new_model, new_order):
    moe = MoeConfig(num_experts=4, experts_per_token=2, router_aux_loss_coef=0.5)
    kept, again = (gradients(new_model(family="mixtral", moe=moe), new_order(), what) for what in ("nothing", "layers"))
    assert torch.equal(kept[0], again[0]) and kept[1] == again[1]
    assert again[2] < kept[2] / 2
