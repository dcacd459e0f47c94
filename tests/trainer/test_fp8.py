"""Training in FP8: every key acts, scales belong to the step and to the group, and the loss follows that of bf16."""

import pytest
import torch

from leveret.console import Console
from leveret.errors import CheckpointError, ConfigError, NonFiniteLoss
from leveret.model.linear import Linear
from leveret.model.lora import LoraSettings, wrap
from leveret.precision.fp8_linear import Fp8Linear
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.swap import quantize_linears
from leveret.trainer.batches import BatchSource
from leveret.trainer.config import TrainingConfig
from leveret.trainer.fp8 import in_fp8, with_scales
from leveret.trainer.objective import CausalLoss
from leveret.trainer.optimizer import build_optimizer
from leveret.trainer.parallel import placed
from leveret.trainer.step import optimizer_step
from leveret.trainer.world import World, joined

BASE = {
    "rows_per_step": 8, "micro_batch_rows": 8, "learning_rate": 1e-2, "sequence_length": 24, "warmup_steps": 0,
    "device": "cpu",
}  # fmt: skip
CPU = World(torch.device("cpu"))


def trained(model, order, num_steps=3, *, before_step=None, world=CPU, state=None, **settings):
    """Losses of some steps, and the optimizer's state after them."""
    config = TrainingConfig(**{**BASE, **settings, "max_steps": num_steps})
    source = BatchSource(order, config, rows_in_one_epoch=len(order.rows))
    model.train()
    losses = []
    with (
        in_fp8(model, config, world, Console(quiet=True)) as scaling,
        placed(model, config, world, Console(quiet=True)),
    ):
        optimizer = build_optimizer(model, config, dtype=torch.bfloat16, seed=0, world=world)
        optimizer = with_scales(optimizer, scaling, world)
        if state is not None:
            optimizer.restore(state, updates=1, layout=optimizer.layout())
        objective = CausalLoss(model, config)
        for step in range(num_steps):
            if before_step is not None:
                before_step(step, model, optimizer)
            batches = source.step(step, rank=world.rank, num_ranks=world.size)
            result = optimizer_step(
                objective, batches, optimizer, step=step, learning_rate=config.learning_rate, world=world
            )
            losses.append(result.loss)
        state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
        optimizer.close()
    return losses, state


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, {}),
        ({}, {"recipe": "current"}),
        ({}, {"history_steps": 1}),
        ({}, {"of_history": "most_recent"}),
        ({}, {"margin": 3}),
        ({}, {"keep_bf16": ["*.down_proj"]}),
        ({}, {"keep_first_layers": 1}),
        ({}, {"keep_last_layers": 1}),
    ],
)
def test_each_key_of_fp8_changes_what_is_learnt(new_model, new_order, one, other):
    found = [trained(new_model(), new_order(), fp8=fp8)[1]["masters"] for fp8 in (one, other)]
    assert not torch.equal(*found)


def test_keys_that_nothing_would_read_and_other_precisions_are_refused():
    with pytest.raises(ValueError, match=r"history_steps \(5\) is read by recipe: delayed only"):
        TrainingConfig(fp8={"recipe": "current", "history_steps": 5})
    with pytest.raises(ValueError, match="precision is fp32"):
        TrainingConfig(fp8={}, precision="fp32")


@pytest.mark.parametrize("recipe", ["delayed", "current"])
def test_the_loss_follows_that_of_bf16(new_model, new_order, recipe):
    order = new_order(num_rows=8)  # few enough to be learnt by heart
    plain, _ = trained(new_model(), order, 40)
    fp8, _ = trained(new_model(), order, 40, fp8={"recipe": recipe})
    assert plain != fp8
    assert plain[-1] < 0.5 * plain[0]
    for step in (0, 5, 10, 20, 39):
        assert fp8[step] == pytest.approx(plain[step], rel=0.03, abs=0.03)


@pytest.mark.parametrize("optimizer", ["muon", "adamw_bf16", "adamw_8bit"])
def test_it_goes_with_every_optimizer(new_model, new_order, optimizer):
    losses, state = trained(new_model(), new_order(num_rows=8), 10, optimizer=optimizer, fp8={})
    assert losses[-1] < 0.9 * losses[0]
    assert (state["fp8_scale"] > 0).all()


def test_the_scales_of_a_step_do_not_depend_on_how_it_is_cut(new_model, new_order):
    found = [trained(new_model(), new_order(), fp8={}, micro_batch_rows=rows) for rows in (8, 2)]
    # Of the first step, the forward pass: later ones see weights that the order of sums has changed a little.
    first, second = (state["fp8_amax_history"][2].view(-1, 3)[:, :2] for _, state in found)
    torch.testing.assert_close(first, second, rtol=0.05, atol=0)
    assert found[0][0] == pytest.approx(found[1][0], rel=0.01)


def test_a_number_that_is_not_finite_is_refused_though_saturation_hides_it(new_model, new_order):
    before = {}

    def poison(step, model, optimizer):
        if step == 2:
            before.update({name: tensor.clone() for name, tensor in optimizer.state().items()}, optimizer=optimizer)
            model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.inf

    with pytest.raises(NonFiniteLoss, match="step 3: the gradient norm is nan though the loss is finite"):
        trained(new_model(), new_order(), before_step=poison, fp8={})
    optimizer = before.pop("optimizer")
    for name, tensor in optimizer.state().items():
        assert torch.equal(tensor, before[name])


def test_forward_passes_between_the_norm_and_the_update_leave_no_trace(new_model, new_order):
    def with_a_look(objective, batches):
        return lambda result: objective(batches[0])

    states = []
    for looks in (False, True):
        model, order = new_model().train(), new_order()
        config = TrainingConfig(**BASE, max_steps=8, fp8={})
        source = BatchSource(order, config, rows_in_one_epoch=40)
        with in_fp8(model, config, CPU, Console(quiet=True)) as scaling:
            optimizer = with_scales(build_optimizer(model, config, dtype=torch.bfloat16, seed=0), scaling, CPU)
            objective = CausalLoss(model, config)
            for step in range(2):
                look = with_a_look(objective, source.step(7)) if looks else None
                optimizer_step(
                    objective, source.step(step), optimizer, step=step, learning_rate=1e-2, before_update=look
                )
            states.append(optimizer.state()["fp8_amax_history"].clone())
            optimizer.close()
    assert torch.equal(*states)


def test_afterwards_the_model_is_an_ordinary_one_and_meanwhile_its_parameters_have_the_same_names(new_model, new_order):
    model = new_model()
    kinds, names = [type(module) for module in model.modules()], [name for name, _ in model.named_parameters()]

    def look(step, model, optimizer):
        assert sum(isinstance(module, Fp8Linear) for module in model.modules()) == 2 * 7
        assert [name for name, _ in model.named_parameters()] == names

    trained(model, new_order(), before_step=look, fp8={})
    assert [type(module) for module in model.modules()] == kinds


def test_a_checkpoint_without_scales_is_refused(new_model, new_order):
    _, state = trained(new_model(), new_order())
    with pytest.raises(CheckpointError, match="no scales for FP8"):
        trained(new_model(), new_order(), state=state, fp8={})


def test_a_frozen_base_is_multiplied_in_8_bits_below_its_adapters(new_model, new_order):
    model = new_model().requires_grad_(False)
    wrap(model, ("layers.0.self_attn.q_proj",), LoraSettings(rank=4, alpha=8))
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.lora_A.normal_()
    seen = []

    def look(step, model, optimizer):
        seen.append(type(model.layers[0].self_attn.q_proj.base))

    losses, _ = trained(model, new_order(), before_step=look, fp8={"keep_bf16": ["layers.1.*"]})
    assert seen[0] is Fp8Linear
    assert losses[-1] != losses[0]
    assert type(model.layers[0].self_attn.q_proj.base) is Linear


def test_a_quantized_base_is_refused(new_model, new_order):
    model = new_model()
    quantize_linears(model, GptqStorage(bits=4, group_size=16, symmetric=True))
    with pytest.raises(ConfigError, match=r"no Linear of the model can be multiplied in FP8 \(the head: 1\)"):
        trained(model, new_order(), fp8={})


def in_a_group(settings):
    from conftest import ToyOrder, make_model  # beside this file, in the process that forks

    config = TrainingConfig(**{**BASE, **settings})
    with joined(config) as world:
        losses, state = trained(make_model(), ToyOrder(num_rows=16), 3, world=world, **settings)
    return losses, {name: state[name].tolist() for name in ("fp8_amax_history", "fp8_scale")}


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_have_the_scales_of_one(group, mode):
    settings = {"fp8": {"history_steps": 4}, "micro_batch_rows": 4}
    (one,) = group("test_fp8.in_a_group", 0, settings=settings)
    first, second = group("test_fp8.in_a_group", 2, settings={**settings, "parallel": {"mode": mode}})
    assert first == second
    assert first[0] == pytest.approx(one[0], rel=0.01)
    ours, theirs = (torch.tensor(found[1]["fp8_amax_history"])[2].view(-1, 3)[:, :2] for found in (first, one))
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0)
