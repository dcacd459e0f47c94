"""The loss from the states of trained positions only is the loss from all of them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from leveret.kernels.cross_entropy import IGNORED
from leveret.model.config import MoeConfig
from leveret.trainer import objective
from leveret.trainer.batches import Batch
from leveret.trainer.objective import summed_loss


def some_batch(share, *, rows=4, length=64, weighted=False):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 61, (rows, length), generator=generator)
    documents = torch.arange(length).expand(rows, length) // 20
    targets = torch.randint(0, 61, (rows, length), generator=generator)
    targets[torch.rand(rows, length, generator=generator) >= share] = IGNORED
    weights = torch.rand(rows, length, generator=generator) if weighted else None
    return Batch(
        input_ids=ids, targets=targets, positions=torch.arange(length).expand(rows, length) % 20,
        document_ids=documents, weights=weights, keys=tuple(f"row {number}" for number in range(rows)),
        trained_tokens=int((targets != IGNORED).sum()),
    )  # fmt: skip


def places_of(batch):
    return objective._places(batch.targets.flatten(), batch.trained_tokens)


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = summed_loss(model, batch)
    loss.backward()
    return float(loss.detach()), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("moe", [None, MoeConfig(num_experts=4)], ids=["dense", "experts"])
def test_loss_and_gradients_are_those_of_all_positions(new_model, monkeypatch, moe, weighted):
    model, batch = new_model(moe=moe), some_batch(0.4, weighted=weighted)
    assert places_of(batch) is not None
    loss, gradients = loss_and_gradients(model, batch)
    monkeypatch.setattr(objective, "_places", lambda *_: None)
    expected, all_gradients = loss_and_gradients(model, batch)
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, all_gradients[name], rtol=1e-4, atol=1e-5)


def test_every_trained_place_is_among_those_computed_and_their_number_is_a_usual_one():
    batch = some_batch(0.4)
    targets, places = batch.targets.flatten(), places_of(batch)
    assert len(places) % objective.PLACES == 0 and len(places) < len(targets)
    assert len(set(places.tolist())) == len(places)
    assert set(torch.nonzero(targets != IGNORED).flatten().tolist()) <= set(places.tolist())


@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_where_nothing_or_nearly_everything_is_trained_all_are_computed(share):
    assert places_of(some_batch(share)) is None


class Offloaded(nn.Module):
    """A model whose shares lie on the CPU, and which computes on another device, as FSDP2 lets it with `offload`."""

    def __init__(self):
        super().__init__()
        self.norm, self.lm_head = nn.Module(), SimpleNamespace(weight=torch.empty(61, 8, device="meta"))
        self.norm.weight = nn.Parameter(torch.ones(8))
        self.norm.weight.device_mesh = SimpleNamespace(device_type="meta")

    def hidden(self, ids, **given):
        self.read_on = {ids.device.type, *(each.device.type for each in given.values() if each is not None)}
        return torch.empty(*ids.shape, 8, device="meta")


def test_with_offload_a_batch_goes_where_the_products_are_made_and_not_where_the_shares_lie(monkeypatch):
    seen = {}

    def loss(hidden, weight, targets, *, token_weights):
        seen.update(targets=targets, weights=token_weights)
        return hidden.sum(), len(targets)

    monkeypatch.setattr(objective, "chunked_cross_entropy", loss)
    model, batch = Offloaded(), some_batch(0.4, weighted=True)
    summed_loss(model, batch)
    assert model.read_on == {"meta"}
    assert {name: (each.device.type, len(each)) for name, each in seen.items()} == {
        "targets": ("meta", 256), "weights": ("meta", 256)
    }  # fmt: skip
