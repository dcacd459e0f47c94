"""The routers' losses: transformers' own on one batch, and the same step however it is cut and shared."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leveret.console import Console
from leveret.errors import ConfigError
from leveret.model.config import MoeConfig
from leveret.model.moe import RouterLogits, router_z_loss
from leveret.trainer.adamw import AdamW
from leveret.trainer.batches import BatchSource, nothing_like
from leveret.trainer.config import TrainingConfig
from leveret.trainer.expert_load import IDLE_STEPS, ExpertLoad
from leveret.trainer.loop import Run, train
from leveret.trainer.metrics import read_metrics
from leveret.trainer.objective import CausalLoss, summed_loss
from leveret.trainer.routing import freeze_routers
from leveret.trainer.step import optimizer_step
from leveret.trainer.world import World, joined

MOE = MoeConfig(num_experts=4, experts_per_token=2, router_aux_loss_coef=0.5)
CPU = torch.device("cpu")


@pytest.fixture
def mixture(new_model):
    def build(moe=MOE, **changes):
        return new_model(family="mixtral", moe=moe, **changes)

    return build


def batches_of(order, *, rows=1, step=0):
    config = TrainingConfig(rows_per_step=8, micro_batch_rows=rows, num_epochs=1)
    return BatchSource(order, config, rows_in_one_epoch=len(order.rows)).step(step)


def gradients(model, batches, *, world=None, **keys):
    config = TrainingConfig(max_grad_norm=None, **keys)
    sums = None if world is None else world.sum_
    optimizer = AdamW(model, config, dtype=torch.float32, sum_over_processes=sums)
    result = optimizer_step(CausalLoss(model, config), batches, optimizer, step=0, learning_rate=1e-2, world=world)
    return result.loss, optimizer.gradients.clone()


class Together(World):
    """A world whose processes are threads of this one."""

    def __init__(self, rank, size, box):
        super().__init__(CPU)
        self.rank, self.size, self.box = rank, size, box

    def sum_(self, tensor):
        slots, barrier = self.box
        slots[self.rank] = tensor.clone()
        barrier.wait(20)
        tensor.copy_(sum(slots))
        barrier.wait(20)

    def gather(self, value):
        return [value]

    def _reduced(self, values, operation):
        numbers = torch.tensor(list(values), dtype=torch.float64)
        self.sum_(numbers)
        return numbers.tolist()


def in_processes(work, size):
    """work(world) in each of `size` processes; their answers."""
    box, answers = ([None] * size, threading.Barrier(size)), [None] * size

    def one(rank):
        answers[rank] = work(Together(rank, size, box))

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


def test_one_micro_batch_has_the_losses_of_transformers(mixture, new_order):
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral", reason="the oracle")
    switch = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    model, (batch,) = mixture(), batches_of(new_order(), rows=8)
    router = RouterLogits()
    with torch.no_grad():
        language = summed_loss(model, batch, router=router) / batch.total_weight
    mask = batch.document_ids >= 0
    assert not mask.all()
    balance = mixtral.load_balancing_loss_func(tuple(router), 4, 2, mask.long())
    z = switch.router_z_loss_func(torch.stack([logits[mask.flatten()] for logits in router]))
    torch.testing.assert_close(router_z_loss(router, mask.flatten()), z)
    loss, _ = gradients(model, [batch], router_aux_loss_coef=0.3, router_z_loss_coef=0.7)
    assert loss == pytest.approx(float(language + 0.3 * balance + 0.7 * z), rel=1e-5)
    loss, _ = gradients(mixture(), [batch])
    assert loss == pytest.approx(float(language + 0.5 * balance), rel=1e-5)  # the model's own coefficient


def test_over_the_step_the_cut_into_micro_batches_makes_no_difference(mixture, new_order):
    keys = {"router_balance": "step", "router_z_loss_coef": 0.1}
    loss, whole = gradients(mixture(), batches_of(new_order(), rows=8), **keys)
    for rows in (1, 3):
        cut_loss, cut = gradients(mixture(), batches_of(new_order(), rows=rows), **keys)
        assert cut_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


def test_by_micro_batch_each_counts_by_its_tokens(mixture, new_order):
    batches = batches_of(new_order(), rows=3)
    loss, _ = gradients(mixture(), batches)
    alone = [gradients(mixture(), [batch]) for batch in batches]
    model, language = mixture(), []
    with torch.no_grad():
        for batch in batches:
            language.append(float(summed_loss(model, batch)))
    tokens = [int((batch.document_ids >= 0).sum()) for batch in batches]
    trained = [batch.total_weight for batch in batches]
    balances = [found - text / n for (found, _), text, n in zip(alone, language, trained, strict=True)]
    expected = sum(language) / sum(trained)
    expected += sum(b * n for b, n in zip(balances, tokens, strict=True)) / sum(tokens)
    assert loss == pytest.approx(expected, rel=1e-5)
    _, often = gradients(mixture(), batches_of(new_order(), rows=1))
    _, once = gradients(mixture(), batches_of(new_order(), rows=8))
    assert not torch.allclose(often, once, rtol=1e-3, atol=1e-5)  # why there is router_balance: step


@pytest.mark.parametrize("rows", [2, 4])
def test_over_the_step_two_processes_are_one(mixture, new_order, rows):
    keys = {"router_balance": "step", "router_z_loss_coef": 0.1}
    loss, whole = gradients(mixture(), batches_of(new_order(), rows=8), **keys)
    shares = batches_of(new_order(), rows=rows)
    half = len(shares) // 2
    parts = [shares[:half], shares[half:]]
    answers = in_processes(lambda world: gradients(mixture(), parts[world.rank], world=world, **keys), 2)
    for found_loss, found in answers:
        assert found_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)


def test_a_process_without_rows_changes_nothing_and_does_not_hold_up_the_others(mixture, new_order):
    keys = {"router_balance": "step", "router_z_loss_coef": 0.1}
    (batch,) = batches_of(new_order(), rows=8)
    loss, whole = gradients(mixture(), [batch], **keys)
    parts = [[batch], [nothing_like(batch)]]
    answers = in_processes(lambda world: gradients(mixture(), parts[world.rank], world=world, **keys), 2)
    for found_loss, found in answers:
        assert found_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)


def test_counting_before_the_step_draws_no_random_numbers(mixture, new_order):
    model = mixture()
    drawn = []
    model.layers[0].register_forward_pre_hook(lambda module, args: drawn.append(float(torch.rand(()))))
    torch.manual_seed(0)
    gradients(model, batches_of(new_order(), rows=4), router_balance="step")
    assert drawn[:2] == drawn[2:] and drawn[0] != drawn[1]


def test_a_frozen_router_stays_bit_for_bit_and_the_rest_is_trained(mixture, new_order):
    model = mixture()
    freeze_routers(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = AdamW(model, TrainingConfig(), dtype=torch.float32)
    optimizer_step(CausalLoss(model), batches_of(new_order()), optimizer, step=0, learning_rate=1e-2)
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert same == {"layers.0.mlp.gate.weight", "layers.1.mlp.gate.weight"}


@pytest.mark.parametrize(
    "key", [{"freeze_router": True}, {"router_aux_loss_coef": 0.0}, {"router_balance": "step"}], ids=str
)
def test_a_model_without_experts_refuses_the_keys_of_routers(new_model, key):
    with pytest.raises(ConfigError, match=next(iter(key))):
        CausalLoss(new_model(), TrainingConfig(**key))


def test_the_load_of_the_experts_is_in_the_record(mixture, new_order, tmp_path):
    model = mixture(replace(MOE, router_aux_loss_coef=0.0))
    with torch.no_grad():
        model.layers[1].mlp.gate.weight.zero_()  # ties: topk takes some two experts for every token
    config = TrainingConfig(
        max_steps=4, rows_per_step=4, micro_batch_rows=2, log_every_steps=2, precision="fp32", freeze_router=True,
        checkpoint_every_steps=None,
    )  # fmt: skip
    run = Run(
        config=config,
        source=BatchSource(new_order(), config, rows_in_one_epoch=40),
        objective=CausalLoss(model, config),
        folder=tmp_path / "run",
        identity={},
        seed=0,
        title="test",
    )
    train(model, run, Console(quiet=True, log=tmp_path / "log"))
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 4]
    for line in lines:
        assert sorted(line["expert_load"][1]) == [0.0, 0.0, 2.0, 2.0]
        assert sum(line["expert_load"][0]) == pytest.approx(4, abs=1e-3)
        assert (line["idlest_expert"], line["busiest_expert"]) == (0.0, 2.0)
        assert line["balance_loss"] > 1.9
    assert "experts 0.00-2.00" in (tmp_path / "log").read_text()
    page = (tmp_path / "run/metrics.html").read_text()
    assert "load of each expert" in page and page.count("<rect") == 2 * 4
    assert "[[" not in page
    json.dumps(lines)


def test_an_expert_that_nobody_chooses_for_long_is_named_once(tmp_path):
    load, console = ExpertLoad(), Console(quiet=True, log=tmp_path / "log")
    zero = torch.zeros(())
    for _ in range(3 * IDLE_STEPS // 10):
        for _ in range(10):
            load.start_step()
            load.add(torch.tensor([[50.0, 50.0, 100.0], [100.0, 99.0, 1.0]]), balance=zero, z=zero, tokens=100)
        load.record(World(CPU), console)
    text = (tmp_path / "log").read_text()
    assert text.count("hardly any token") == 1 and "layer 1 expert 2;" in text


def test_the_load_is_that_of_all_processes(tmp_path):
    counts = [torch.tensor([[6.0, 2.0]]), torch.tensor([[0.0, 8.0]])]

    def work(world):
        load = ExpertLoad()
        load.start_step()
        load.add(counts[world.rank], balance=torch.tensor(2.0 + world.rank), z=torch.tensor(0.0), tokens=8)
        return load.record(world, Console(quiet=True))

    for record in in_processes(work, 2):
        assert record["expert_load"] == [[0.75, 1.25]]
        assert record["balance_loss"] == pytest.approx(2.5)


def frozen(folder):
    """A short run of a mixture whose routers are frozen, in shares of bf16; whether routers and the rest moved."""
    from conftest import ToyOrder, make_model  # beside this file, in the process that forks

    config = TrainingConfig(
        max_steps=3, rows_per_step=4, micro_batch_rows=2, sequence_length=24, freeze_router=True, device="cpu",
        router_balance="step", log_every_steps=1, checkpoint_every_steps=None, parallel={"mode": "fsdp"},
    )  # fmt: skip
    model = make_model(family="mixtral", moe=MOE)
    before = {name: p.detach().bfloat16().float() for name, p in model.named_parameters()}
    source = BatchSource(ToyOrder(), config, rows_in_one_epoch=40)
    with joined(config) as world:
        run = Run(
            config=config, source=source, objective=CausalLoss(model, config), folder=Path(folder), identity={},
            seed=0, title="test", world=world,
        )  # fmt: skip
        train(model, run, Console(quiet=True))
        if not world.is_main:
            return None
    return sorted(name for name, p in model.named_parameters() if torch.equal(p.float(), before[name]))


@pytest.mark.slow
def test_frozen_routers_stay_in_shares_too_and_the_record_has_the_load(group, tmp_path):
    same, nothing = group("test_routing.frozen", 2, folder=str(tmp_path / "run"))
    assert nothing is None
    assert same == ["layers.0.mlp.gate.weight", "layers.1.mlp.gate.weight"]
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [len(line["expert_load"]) for line in lines] == [2, 2, 2]
