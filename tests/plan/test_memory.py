"""The formulas of memory, against what the decoder and the optimizers really hold."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from leveret.finetune.adapter_config import AdapterTraining
from leveret.kernels import cross_entropy
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.count import count
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.lora import LoraSettings
from leveret.model.lora_targets import add_lora, train_whole
from leveret.plan.known_model import KnownModel
from leveret.plan.memory import (
    DEFAULT_CACHE_BYTES,
    Part,
    activation_bytes,
    bytes_per_device,
    bytes_read_per_token,
    chunk_positions,
    devices_needed,
    numbers_kept_per_layer,
    serving_parts,
    stored_bytes,
    training_parts,
)
from leveret.plan.trained import trained_of
from leveret.precision.swap import round_to_nf4
from leveret.trainer.adamw import is_inner_matrix
from leveret.trainer.config import TrainingConfig
from leveret.trainer.optimizer import build_optimizer
from leveret.trainer.recompute import recomputed_layers

ROWS, LENGTH = 2, 128


def config_of(hidden=128, inner=256, layers=3, heads=2, shared=1, moe=None, vocab=512):
    return ModelConfig(
        family="mixtral" if moe else "mistral", vocab_size=vocab, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=shared, moe=moe,
    )  # fmt: skip


def kept_bytes(config, dtype, recompute="nothing", adapter=None):
    """Bytes that a forward keeps for backward, without the parameters."""
    model = Decoder(config)
    init_weights(model, 0)
    if adapter is not None:
        add_lora(model, LoraSettings(rank=adapter.rank, alpha=1), adapter.targets, seed=0)
    model.to(dtype)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.randint(0, config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    documents = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    with recomputed_layers(model, recompute), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.hidden(ids, document_ids=documents)
    return sum(kept.values())


SHAPES = [{}, {"inner": 640}, {"shared": 2}, {"hidden": 256, "heads": 4}]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("precision", "compiled", "tolerance"), [("fp32", True, 0.05), ("bf16", False, 0.15), ("bf16", True, 0.10)]
)
def test_a_layer_keeps_what_the_formula_says(shape, precision, compiled, tolerance, monkeypatch):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    two, three = config_of(layers=2, **shape), config_of(layers=3, **shape)
    if precision == "bf16":
        from leveret.kernels.native import library

        if compiled and library.choose().library is None:
            pytest.skip("the compiled kernels are not built here")
        if not compiled:
            monkeypatch.setattr(library, "choose", lambda: library.Choice(None, "a test"))
    one_layer = (kept_bytes(three, dtype) - kept_bytes(two, dtype)) / (ROWS * LENGTH * dtype.itemsize)
    formula = numbers_kept_per_layer(three, precision=precision, compiled_kernels=compiled)
    assert one_layer == pytest.approx(formula, rel=tolerance)


@pytest.mark.parametrize("recompute", ["nothing", "layers"])
def test_a_forward_keeps_what_the_plan_says(recompute):
    config = config_of(layers=4)
    training = TrainingConfig(
        precision="fp32", sequence_length=LENGTH, micro_batch_rows=ROWS, rows_per_step=ROWS, recompute=recompute
    )
    planned = activation_bytes(config, training, compiled_kernels=True)
    if recompute == "layers":  # the one layer that is computed again comes later, in backward
        planned -= 4 * ROWS * LENGTH * numbers_kept_per_layer(config, precision="fp32", compiled_kernels=True)
    assert kept_bytes(config, torch.float32, recompute) == pytest.approx(planned, rel=0.1)


def test_experts_keep_what_the_formula_says():
    two, three = (config_of(layers=n, moe=MoeConfig(num_experts=4, experts_per_token=2)) for n in (2, 3))
    one_layer = (kept_bytes(three, torch.float32) - kept_bytes(two, torch.float32)) / (ROWS * LENGTH * 4)
    formula = numbers_kept_per_layer(three, precision="fp32", compiled_kernels=True)
    assert one_layer == pytest.approx(formula, rel=0.1)


def test_the_chunk_of_the_loss_is_that_of_the_kernel():
    for vocabulary in (100, 4096, 32_000, 152_000, 10**9):
        for positions in (1, 700, 100_000):
            assert chunk_positions(positions, vocabulary) == cross_entropy.chunk_positions(positions, vocabulary)


LEAN = {"optimizer": "adamw_8bit", "stochastic_rounding": True}
BACKWARD = {"optimizer_in_backward": True, "max_grad_norm": None, "rows_per_step": 8}


@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "fp32"}, {"optimizer": "muon"}, {"optimizer": "adamw_bf16"}, LEAN, {**LEAN, **BACKWARD}],
)
def test_weights_and_optimizer_are_as_large_as_planned(changes):
    config, training = config_of(hidden=256, inner=512), TrainingConfig(**changes)
    model = Decoder(config)
    dtype = torch.float32 if training.precision == "fp32" else torch.bfloat16
    optimizer = build_optimizer(model, training, dtype=dtype, seed=0)
    tensors = [optimizer.weights, optimizer.gradients, *optimizer.state().values()]
    held = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors if tensor.numel()}
    parts = {
        p.name: p.bytes for p in training_parts(KnownModel(config=config, origin=""), training, compiled_kernels=True)
    }
    names = ("weights", "fp32 masters", "optimizer averages", "gradients")
    assert sum(held.values()) == pytest.approx(sum(parts.get(name, 0) for name in names), rel=0.02)
    assert trained_of(config, None).largest == max(parameter.numel() for parameter in model.parameters())


PARTS = [
    Part(name="weights", bytes=14.0, split="weights"),
    Part(name="states", bytes=84.0, split="optimizer"),
    Part(name="gradients", bytes=28.0, split="gradients"),
    Part(name="activations", bytes=10.0),
]


@pytest.mark.parametrize(
    ("way", "on_four", "needed"),
    [
        ("copies", 136.0, None),
        ("zero-1", 14 + 21 + 28 + 10, 4),
        ("zero-2", 14 + 21 + 7 + 10, 2),
        ("zero-3", 3.5 + 21 + 7 + 10, 2),
    ],
)
def test_zero_splits_one_kind_of_thing_after_another(way, on_four, needed):
    assert bytes_per_device(PARTS, 4, way) == on_four
    assert devices_needed(PARTS, 80.0, way) == needed
    assert devices_needed(PARTS, 136.0, way) == 1


def test_activations_that_alone_are_too_large_fit_on_no_number_of_devices():
    assert devices_needed(PARTS, 9.0, "zero-3") is None


def test_quantized_weights_are_bits_and_the_scales_of_their_groups():
    config = config_of(hidden=128, inner=256, vocab=512)
    whole, packed = (KnownModel(config=config, origin="", bits=bits, group_size=32) for bits in (16, 4))
    outside = 2 * 512 * 128
    inside = stored_bytes(whole) / 2 - outside
    assert stored_bytes(packed) == pytest.approx(outside * 2 + inside * (0.5 + 2.5 / 32))


def test_weights_in_nf4_are_as_large_as_planned():
    config = config_of(hidden=512, inner=1024, layers=2, heads=4, vocab=64)  # large beside the tables of codes
    model = Decoder(config).to(torch.bfloat16)
    init_weights(model, 0)
    round_to_nf4(model)
    real = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert stored_bytes(KnownModel(config=config, origin="").in_nf4()) == pytest.approx(real, rel=0.02)


def test_the_cache_of_a_server_is_full_contexts_times_requests():
    config = config_of(layers=3, heads=2, shared=1)
    model, token = KnownModel(config=config, origin=""), 3 * 2 * 64 * 2
    _, cache = serving_parts(model, requests=5)
    assert cache.bytes == 5 * config.context_tokens * token
    _, shorter = serving_parts(model, requests=5, context_tokens=7)
    assert shorter.bytes == 5 * 7 * token


def test_the_cache_of_a_server_is_no_larger_than_the_engine_makes_it():
    config = config_of(layers=3, heads=2, shared=1)
    model, one = KnownModel(config=config, origin=""), config.context_tokens * 3 * 2 * 64 * 2
    assert serving_parts(model, requests=10**9)[1].bytes == max(DEFAULT_CACHE_BYTES, one)
    assert serving_parts(model, requests=5, cache_bytes=one / 2)[1].bytes == one / 2


@pytest.mark.parametrize("tied", [False, True])
def test_a_decoded_token_reads_the_head_and_the_layers_and_no_table_besides(tied):
    config = dataclasses.replace(config_of(), tie_word_embeddings=tied)
    whole, packed = (KnownModel(config=config, origin="", bits=bits) for bits in (16, 8))
    numbers = count(config)
    inside = numbers.total - numbers.embedding * (1 if tied else 2)
    assert bytes_read_per_token(whole) == 2 * (numbers.embedding + inside)
    assert bytes_read_per_token(packed) == 2 * numbers.embedding + inside


ADAPTERS = [
    ("mistral", {"rank": 4}),
    ("lingowhale", {"rank": 4, "targets": ["qkv_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    ("mixtral", {"rank": 3, "dora": True}),
    ("llama", {"targets": r".*\.1\..*", "modules_to_save": ["lm_head"]}),
]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("family", "options"), ADAPTERS)
def test_the_numbers_of_an_adapter_are_those_that_are_trained(family, options, tied):
    moe = MoeConfig(num_experts=4, experts_per_token=2) if family == "mixtral" else None
    config = dataclasses.replace(config_of(moe=moe), family=family, tie_word_embeddings=tied)
    adapter = AdapterTraining(**options)
    model = Decoder(config)
    add_lora(model, LoraSettings(rank=adapter.rank, alpha=1, dora=adapter.dora), adapter.targets, seed=0)
    train_whole(model, adapter.modules_to_save)
    real = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    expected = trained_of(config, adapter)
    assert (expected.numbers, expected.is_everything) == (sum(real), False)
    inside = [p.numel() for name, p in model.named_parameters() if p.requires_grad and is_inner_matrix(name, p)]
    assert expected.inner == sum(inside)
    # Parts of a fused matrix are parameters of their own.
    assert expected.largest == max(real) or (family == "lingowhale" and expected.largest > max(real))
    assert expected.has_head == model.lm_head.weight.requires_grad


def test_what_a_step_with_an_adapter_keeps_is_a_little_less_than_counted():
    config, adapter = config_of(), AdapterTraining(rank=16)
    training = TrainingConfig(
        micro_batch_rows=ROWS, rows_per_step=ROWS, sequence_length=LENGTH, precision="fp32", warmup_steps=0
    )
    known = KnownModel(config=config, origin="")
    parts = {
        part.name: part.bytes
        for part in training_parts(known, training, compiled_kernels=False, trained=trained_of(config, adapter))
    }
    kept = kept_bytes(config, torch.float32, adapter=adapter)  # frozen norms and the first layer keep less
    assert 0.85 * parts["activations"] < kept < parts["activations"]
    assert "fp32 masters" not in parts and parts["optimizer averages"] == 8 * trained_of(config, adapter).numbers
