"""NEFTune: how large the noise is, where it is, and that a run with it resumes to the bit."""

import math

import numpy as np
import pytest
import torch

from leveret.console import Console
from leveret.data.packing import Sample
from leveret.data.sample_rows import pack_samples
from leveret.finetune import run as finetune
from leveret.finetune.neftune import NoisyLoss, noise_for
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.paths import hash_tree
from leveret.trainer import loop
from leveret.trainer.batches import Batch, batch_of, nothing_like
from leveret.trainer.config import TrainingConfig
from leveret.trainer.objective import CausalLoss, summed_loss
from leveret.trainer.recompute import recomputed_layers
from leveret.trainer.world import World

HIDDEN, ALPHA = 64, 5.0
QUIET = Console(quiet=True)


@pytest.fixture
def model():
    model = Decoder(ModelConfig(vocab_size=50, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=2,
                                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                                tie_word_embeddings=False))  # fmt: skip
    init_weights(model, 0)
    return model


def packed(*lengths, size=48, keys=None):
    samples = [Sample(ids=list(range(1, n + 1)), mask=[True] * n, key=f"x:{n}") for n in lengths]
    rows = pack_samples(samples, size)
    return batch_of([rows.row(i) for i in range(len(rows))], keys or [rows.key(i) for i in range(len(rows))])


def test_each_document_gets_noise_by_its_own_length_packed_padded_or_alone():
    batch = packed(30, 4, 10)
    noise = noise_for(batch, HIDDEN, ALPHA, seed=0)[0]
    for document, length in enumerate((30, 10, 4)):
        part = noise[batch.document_ids[0] == document]
        bound = ALPHA / math.sqrt(length * HIDDEN)
        assert part.shape == (length, HIDDEN)
        assert 0.98 * bound < part.abs().max() <= bound
        assert part.norm() == pytest.approx(ALPHA / math.sqrt(3), rel=0.1)
    assert not noise[batch.document_ids[0] < 0].any()


def test_the_noise_follows_from_the_step_and_the_row_however_batches_are_cut():
    two = packed(40, 30)
    whole = noise_for(two, HIDDEN, ALPHA, seed=7)
    for row, length in enumerate((40, 30)):
        one = noise_for(packed(length), HIDDEN, ALPHA, seed=7)
        np.testing.assert_array_equal(one[0], whole[row])
    assert not torch.equal(noise_for(two, HIDDEN, ALPHA, seed=8), whole)
    assert not torch.equal(whole[0, :30] * math.sqrt(40 / 30), whole[1, :30])
    assert not noise_for(nothing_like(two), HIDDEN, ALPHA, seed=7).any()


@pytest.mark.parametrize("recompute", ["nothing", "layers"])
def test_the_loss_is_that_of_noisy_embeddings(model, recompute):
    batch = packed(20, 9)
    torch.manual_seed(3)
    found = NoisyLoss(CausalLoss(model, TrainingConfig()), ALPHA)
    with recomputed_layers(model, recompute):
        loss = found(batch)
        loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    def noisy(layer, arguments):
        return (arguments[0] + noise_for(batch, HIDDEN, ALPHA, seed=3), *arguments[1:])

    with model.layers[0].register_forward_pre_hook(noisy):
        by_hand = summed_loss(model, batch)
        by_hand.backward()
    assert loss.item() == by_hand.item()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_experts_are_balanced_over_the_step_by_the_choices_that_noise_leads_to():
    moe = MoeConfig(num_experts=8, experts_per_token=2, router_aux_loss_coef=1.0)
    mixture = Decoder(ModelConfig(family="mixtral", vocab_size=50, hidden_size=HIDDEN, intermediate_size=64, moe=moe,
                                  num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                  max_position_embeddings=64))  # fmt: skip
    init_weights(mixture, 0)
    training = TrainingConfig(router_balance="step")
    rows = [packed(length, keys=[f"row {length}"]) for length in (40, 30, 20, 44)]
    whole = batch_of_batches(rows)
    torch.manual_seed(0)
    world = World(torch.device("cpu"))
    sums = []
    for batches in ([whole], rows):
        loss = NoisyLoss(CausalLoss(mixture, training), 50.0)
        loss.start_step(batches, world)
        sums.append(sum(loss(batch).item() for batch in batches))
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


def batch_of_batches(rows):
    """The rows of batches of one row each, in one batch."""
    names = ("input_ids", "targets", "positions", "document_ids")
    stacked = {name: torch.cat([getattr(row, name) for row in rows]) for name in names}
    keys = tuple(key for row in rows for key in row.keys)
    return Batch(**stacked, keys=keys, trained_tokens=sum(row.trained_tokens for row in rows))


def test_measuring_sees_no_noise(model):
    batch = packed(20, 9)
    noisy, plain = NoisyLoss(CausalLoss(model, TrainingConfig()), ALPHA), CausalLoss(model, TrainingConfig())
    assert noisy(batch).item() != plain(batch).item()
    with torch.no_grad():
        assert noisy(batch).item() == plain(batch).item() == summed_loss(model, batch).item()
    assert not model.layers[0]._forward_pre_hooks


def test_a_noisy_run_that_died_gives_the_weights_of_one_that_did_not(make_config, monkeypatch):
    whole, broken, plain = make_config("whole", neftune=5.0), make_config("broken", neftune=5.0), make_config("plain")
    for config in (whole, plain):
        finetune.run(config, QUIET)

    step, calls = loop.optimizer_step, []

    def dies(*args, **kwargs):
        calls.append(kwargs["step"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", dies)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(broken, QUIET)
    finetune.run(broken, QUIET)
    weights = [hash_tree(config.output / "model") for config in (whole, broken, plain)]
    assert weights[0] == weights[1] != weights[2]
