"""Many processes train the model that one trains: in every mode, whatever falls to whom, and over changes of number."""

import itertools

import pytest
import torch

from leveret.console import Console
from leveret.errors import ConfigError
from leveret.model.config import MoeConfig
from leveret.model.lora import LoraSettings
from leveret.model.lora_targets import add_lora
from leveret.model.token_rows import train_rows
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.swap import quantize_linears, round_to_nf4
from leveret.ranks import Ranks
from leveret.trainer import lean_adamw
from leveret.trainer.batches import BatchSource
from leveret.trainer.config import TrainingConfig
from leveret.trainer.objective import CausalLoss
from leveret.trainer.optimizer import build_optimizer
from leveret.trainer.parallel import DTYPES, _checksum, mesh_of, placed
from leveret.trainer.parallel_config import ParallelConfig
from leveret.trainer.routing import freeze_routers
from leveret.trainer.step import optimizer_step
from leveret.trainer.world import World, joined

BASE = {
    "rows_per_step": 8, "micro_batch_rows": 4, "learning_rate": 1e-2, "precision": "fp32", "sequence_length": 24,
    "max_grad_norm": None, "device": "cpu", "warmup_steps": 0,
}  # fmt: skip
STEPS = 4
MOE = {"family": "mixtral", "moe": {"num_experts": 4, "experts_per_token": 1}}


def make(settings, shape):
    from conftest import ToyOrder, make_model  # beside this file, in the process that forks

    lean_adamw.SMALLEST_COMPRESSED = 64  # so that a toy is compressed; in this process only
    config = TrainingConfig(**{**BASE, **settings})
    shape = {**shape, "moe": MoeConfig(**shape["moe"])} if "moe" in shape else shape
    adapter = shape.get("adapter")
    model = make_model(**{key: value for key, value in shape.items() if key not in ("adapter", "quantized")})
    if shape.get("quantized") == "nf4":
        round_to_nf4(model)
    elif shape.get("quantized") == "int4":
        quantize_linears(model, GptqStorage(bits=4, group_size=16, symmetric=True), search=False)
    if adapter is not None:
        add_lora(model, LoraSettings(rank=4, alpha=8), adapter["targets"], seed=0)
        train_rows(model, adapter["rows"])
    if config.freeze_router:
        freeze_routers(model)
    return config, model, BatchSource(ToyOrder(num_rows=32), config, rows_in_one_epoch=32)


def steps(settings, shape):
    """A few steps; what each reports, what this process saw, and the state and the model at the end."""
    config, model, source = make(settings, shape)
    with joined(config) as world:
        reports, seen = [], []
        with placed(model, config, world, Console(quiet=True)):
            optimizer = build_optimizer(model, config, dtype=DTYPES[config.precision], seed=0, world=world)
            objective = CausalLoss(model, config)
            for step in range(STEPS):
                batches = source.step(step, rank=world.rank, num_ranks=world.size)
                seen.append(([key for batch in batches for key in batch.keys], sum(b.trained_tokens for b in batches)))
                result = optimizer_step(objective, batches, optimizer, step=step, learning_rate=1e-2, world=world)
                reports.append([result.loss, result.gradient_norm, result.trained_tokens, result.tokens])
            state = {name: tensor.float().tolist() for name, tensor in optimizer.state().items()}
            optimizer.close()
        weights = {name: p.detach().float().tolist() for name, p in model.named_parameters()} if world.is_main else {}
        dtypes = {str(p.dtype) for p in model.parameters()}
        return {"reports": reports, "seen": seen, "state": state, "weights": weights, "dtypes": sorted(dtypes)}


@pytest.fixture
def both(group):
    """What one process alone finds, and what each member of a group does."""

    def run(processes, settings, shape=None, alone=None):
        given = {key: value for key, value in settings.items() if key != "parallel"} | (alone or {})
        (one,) = group("test_parallel.steps", 0, settings=given, shape=shape or {})
        return one, group("test_parallel.steps", processes, settings=settings, shape=shape or {})

    return run


def assert_same(one, many, *, tolerance):
    """The same reports in all members, and what one process has in the first of them."""
    first = many[0]
    assert all(member["reports"] == first["reports"] for member in many)
    for ours, theirs in zip(first["reports"], one["reports"], strict=True):
        assert ours[2:] == theirs[2:]
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-5 if tolerance < 1e-3 else 1e-3)
    assert first["dtypes"] == one["dtypes"]
    for kind in ("weights", "state"):
        assert first[kind].keys() == one[kind].keys()
        for name, value in one[kind].items():
            off = float((torch.tensor(first[kind][name]) - torch.tensor(value)).abs().max())
            assert off <= tolerance, name


FSDP = {"parallel": {"mode": "fsdp"}}
EXACT = {  # two processes with as many micro-batches in all as the one: nothing is added up in another order
    "ddp": {},
    "ddp in bf16": {"precision": "bf16"},
    "ddp, clipped": {"max_grad_norm": 0.1},
    "ddp, 8-bit states": {"optimizer": "adamw_8bit"},
    "ddp, muon": {"optimizer": "muon"},
    "fsdp": FSDP,
    "fsdp in bf16": {"precision": "bf16", **FSDP},
    "fsdp without resharding": {"parallel": {"mode": "fsdp", "reshard": False}},
}


QUICK = {
    "ddp", "ddp in bf16", "ddp, clipped", "fsdp", "fsdp, clipped", "ddp, experts",
    "ddp, three processes, rows that do not divide",
}  # fmt: skip
"""What is tried again and again; the others take as long as all of these."""


def cases(table):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in table]


@pytest.mark.parametrize("case", cases(EXACT))
def test_two_processes_train_the_model_of_one_to_the_bit(both, case):
    one, two = both(2, EXACT[case])
    assert_same(one, two, tolerance=0)
    tokens = [[member["seen"][step][1] for step in range(STEPS)] for member in two]
    assert tokens[0] != tokens[1]  # or a mean of means would have done


@pytest.mark.slow
def test_tied_weights_stay_tied_when_they_are_shared_out(both):
    one, two = both(2, FSDP, {"tie_word_embeddings": True})
    assert_same(one, two, tolerance=0)


ADAPTER = {"family": "lingowhale", "adapter": {"targets": ["qkv_proj", "down_proj"], "rows": [3, 5]}}


@pytest.mark.parametrize("mode", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_adapters_and_rows_of_tokens_are_trained_by_two_processes_as_by_one(both, mode, precision, tied):
    one, two = both(2, {"precision": precision, "parallel": {"mode": mode}}, ADAPTER | {"tie_word_embeddings": tied})
    assert_same(one, two, tolerance=0)


QUANTIZED = {"adapter": {"targets": "all-linear", "rows": [3]}}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("quantized", ["int4", "nf4"])
def test_adapters_on_a_quantized_model_are_trained_by_two_processes_as_by_one(both, mode, precision, quantized):
    one, two = both(2, {"precision": precision, "parallel": {"mode": mode}}, QUANTIZED | {"quantized": quantized})
    assert_same(one, two, tolerance=0)


CLOSE = {  # processes, settings, shape: sums in another order
    "ddp, three processes, rows that do not divide": (3, {"rows_per_step": 7, "micro_batch_rows": 1}, {}),
    "fsdp, three processes, rows that do not divide": (3, {"rows_per_step": 7, "micro_batch_rows": 2, **FSDP}, {}),
    "fsdp, clipped": (2, {"max_grad_norm": 0.1, **FSDP}, {}),
    "ddp, accumulated": (2, {"micro_batch_rows": 1}, {}),
    "ddp, experts": (2, {"micro_batch_rows": 2}, MOE),
    "fsdp, experts": (2, {"micro_batch_rows": 2, **FSDP}, MOE),
    "hsdp, two by two": (4, {"micro_batch_rows": 2, "parallel": {"mode": "hsdp", "shard_size": 2}}, {}),
    "hsdp, two by two, clipped": (
        4, {"micro_batch_rows": 2, "max_grad_norm": 0.1, "parallel": {"mode": "hsdp", "shard_size": 2}}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", cases(CLOSE))
def test_processes_train_the_model_of_one_within_rounding(both, case):
    processes, settings, shape = CLOSE[case]
    one, many = both(processes, settings, shape)
    assert_same(one, many, tolerance=1e-5)


@pytest.mark.parametrize("mode", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rows", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_experts_balanced_over_a_step_do_not_see_how_it_is_cut(both, mode, rows):
    settings = {"router_balance": "step", "router_aux_loss_coef": 1.0, "parallel": {"mode": mode}}
    one, two = both(2, {**settings, "micro_batch_rows": rows}, MOE, alone={"micro_batch_rows": 8})
    assert_same(one, two, tolerance=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_routers_are_shared_out_with_the_rest(both, precision):
    settings = {"freeze_router": True, "precision": precision, **FSDP}
    one, two = both(2, settings, MOE)
    assert_same(one, two, tolerance=0 if precision == "fp32" else 1e-3)
    assert not [name for name in two[0]["state"] if "gate" in name]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fsdp", "hsdp"])
def test_muon_updates_whole_matrices_where_processes_hold_shares(both, mode):
    one, many = both(2, {"optimizer": "muon", "parallel": {"mode": mode}})
    assert_same(one, many, tolerance=2e-3)  # the iteration works in bf16


@pytest.mark.parametrize("rows", [8, 7, 5, 1])
def test_every_row_falls_to_exactly_one_process(new_order, rows):
    config = TrainingConfig(**{**BASE, "rows_per_step": rows, "micro_batch_rows": min(rows, 2), "num_epochs": 1.0})
    source = BatchSource(new_order(num_rows=30), config, rows_in_one_epoch=30)
    for size, step in itertools.product((1, 2, 3, 8), range(source.total_steps)):
        shares = [source.step(step, rank=rank, num_ranks=size) for rank in range(size)]
        keys = [key for share in shares for batch in share for key in batch.keys]
        assert keys == [key for batch in source.step(step) for key in batch.keys]
        assert len({len(share) for share in shares}) == 1  # they meet in each


def test_processes_that_start_from_other_weights_are_refused(groups, tmp_path):
    codes, returned = groups.run("test_parallel.unequal", 2, tmp_path)
    assert all(codes)
    assert all("process 1 has another start model than process 0" in text for text in returned)


def unequal():
    config, model, _ = make({}, {})
    with joined(config) as world, torch.no_grad():
        model.norm.weight[0] += world.rank
        with placed(model, config, world, Console(quiet=True)):
            pass


def test_the_checksum_of_a_model_is_the_same_on_a_machine_with_more_threads():
    numbers = torch.randn(3_000_000, generator=torch.Generator().manual_seed(2))  # their sum depends on the threads
    model = torch.nn.ParameterList([numbers, numbers[:7].bfloat16(), torch.tensor(2.0)])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3, 8):
            torch.set_num_threads(threads)
            found.append(_checksum(model))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1
    with torch.no_grad():
        model[0][7] = model[0][7].nextafter(torch.tensor(9.0))
    assert _checksum(model) != found[0]


def test_a_sharded_model_is_plain_again_afterwards(group):
    assert group("test_parallel.unwrapped", 2) == [[], []]


def unwrapped():
    config, model, source = make(FSDP, {})
    before = {name: (type(module), sorted(vars(module))) for name, module in model.named_modules()}
    with joined(config) as world:
        with placed(model, config, world, Console(quiet=True)):
            changed = {name for name, module in model.named_modules() if type(module) is not before[name][0]}
            assert changed == {"", *(name for name in before if name.startswith("layers.") and name.count(".") == 1)}
        after = {name: (type(module), sorted(vars(module))) for name, module in model.named_modules()}
        if world.is_main:
            model(source.step(0)[0].input_ids)
        return [name for name in before if before[name] != after[name]]


def test_processes_that_do_not_make_whole_groups_are_refused():
    ranks = Ranks(rank=0, world_size=6, local_rank=0, local_world_size=6, address="a", port=1)
    with pytest.raises(ConfigError, match="6 processes cannot be cut into groups of 4"):
        mesh_of(ParallelConfig(mode="hsdp", shard_size=4), World(torch.device("cpu"), ranks=ranks))


@pytest.mark.parametrize(
    "keys", [{"shard_size": 2}, {"mode": "fsdp", "shard_size": 2}, {"offload": True}, {"reshard": False}]
)
def test_keys_that_the_mode_does_not_read_are_refused(keys):
    with pytest.raises(ValueError, match="mode is"):
        ParallelConfig(**keys)
