"""A merged model answers as its adapter does, says what rounding cost, and is never made of quantized matrices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from leveret.errors import ConfigError, HubError
from leveret.hub import model_under, resolve_model, resolve_whole_model
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.lora import LoraSettings, lora_modules
from leveret.model.lora_rules import Targets
from leveret.model.lora_targets import add_lora
from leveret.model.token_rows import TokenRows, train_rows
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.swap import quantize_linears
from leveret.weights.adapted import adapted
from leveret.weights.adapter import save_adapter
from leveret.weights.load import load_model, read_config
from leveret.weights.merged import load_merged, merge_adapter, merge_into_model
from leveret.weights.save import save_model
from leveret.weights.tokens import resize_tokens

IDS = torch.arange(20).view(2, 10)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    config = ModelConfig(family="lingowhale", vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    model = Decoder(config)
    init_weights(model, 0)
    save_model(model, tmp_path / "base")
    return tmp_path / "base"


def make_adapter(
    base: Path, size: float = 0.1, *, dora: bool = False, rows: tuple[int, ...] = (), targets: Targets = "all-linear"
) -> Path:
    """Of changes of this size; with rows of tokens, some of them new."""
    model = load_model(base)
    if rows:
        resize_tokens(model, max(40, max(rows) + 1))
    add_lora(model, LoraSettings(rank=4, alpha=4, dora=dora), targets, seed=0)
    if rows:
        train_rows(model, rows)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.empty(parameter.shape).normal_(0, size, generator=generator))
    save_adapter(model, base.parent / "adapter", base=str(base))
    return base.parent / "adapter"


def test_neither_the_adapter_nor_the_model_under_it_is_replaced(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base)
    for output in (adapter, base, tmp_path):
        with pytest.raises(ConfigError, match="would replace"):
            merge_into_model(adapter, output)


@pytest.mark.parametrize("named_is_there", [False, True])
def test_the_base_that_is_given_is_merged_into_and_not_the_one_that_is_named(base: Path, named_is_there: bool) -> None:
    adapter, given = make_adapter(base), base.rename(base.with_name("moved"))
    wanted = load_model(given, adapter=adapter)
    if named_is_there:  # another model by now
        other = Decoder(wanted.config)
        init_weights(other, 1)
        save_model(other, base)
    merged, _ = load_merged(adapter, base=given)
    assert torch.allclose(wanted(IDS), merged(IDS), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rows", [(), (5, 40, 41)])
def test_the_merged_model_answers_as_the_adapter(base: Path, tmp_path: Path, dora: bool, rows: tuple[int, ...]) -> None:
    adapter = make_adapter(base, dora=dora, rows=rows)
    report = merge_into_model(adapter, tmp_path / "merged")
    adapted, merged = load_model(adapter), load_model(tmp_path / "merged")
    ids = torch.tensor([[1, 2, *rows, 3]])
    torch.testing.assert_close(merged(ids), adapted(ids), rtol=1e-4, atol=1e-5)
    if not rows:
        assert (merged(ids) - load_model(base)(ids)).norm() > 0.1 * merged(ids).norm()
    assert len(report.lost) == 10 and all(lost < 1e-5 for lost in report.lost.values())
    assert merged.config.vocab_size == (42 if rows else 40)


@torch.no_grad()
@pytest.mark.parametrize("dora", [False, True])
def test_a_changed_head_leaves_the_embedding_it_was_tied_to(tmp_path: Path, dora: bool) -> None:
    config = ModelConfig(family="mistral", vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
    tied = Decoder(config)
    init_weights(tied, 0)
    save_model(tied, tmp_path / "base")
    adapter = make_adapter(tmp_path / "base", dora=dora, targets=["q_proj", "lm_head"])
    merge_into_model(adapter, tmp_path / "merged")
    adapted_model, merged = load_model(adapter), load_model(tmp_path / "merged")
    torch.testing.assert_close(merged(IDS), adapted_model(IDS), rtol=1e-4, atol=1e-5)
    assert torch.equal(merged.embed_tokens.weight, tied.embed_tokens.weight)
    assert not merged.config.tie_word_embeddings
    beside = adapted(load_model(tmp_path / "base"), adapter)
    assert torch.equal(beside(IDS), adapted_model(IDS))


@torch.no_grad()
def test_merging_in_bfloat16_stays_within_its_rounding_and_tells_how_much_was_lost(base: Path) -> None:
    large, report = load_merged(make_adapter(base, 0.1), dtype="bfloat16")
    adapted = load_model(base.parent / "adapter")
    assert (large(IDS).float() - adapted(IDS)).norm() < 0.02 * adapted(IDS).norm()
    assert all(0 < lost < 0.05 for lost in report.lost.values())
    _, tiny = load_merged(make_adapter(base, 1e-5), dtype="bfloat16")
    assert all(lost > 0.8 for lost in tiny.lost.values())
    assert "10 matrices in bfloat16" in tiny.line() and "lost" in tiny.line()


@torch.no_grad()
def test_each_matrix_is_rounded_once(base: Path) -> None:
    adapter = make_adapter(base, 0.1)
    exact, _ = load_merged(adapter)
    rounded, _ = load_merged(adapter, dtype="bfloat16")
    base_rounded = load_model(base, dtype="bfloat16").layers[0].mlp.up_proj.weight.float()
    change = exact.layers[0].mlp.up_proj.weight - load_model(base).layers[0].mlp.up_proj.weight
    got = rounded.layers[0].mlp.up_proj.weight
    assert (got == (base_rounded + change).bfloat16()).float().mean() > 0.99  # but for the last bit of a float32 sum


def test_merging_into_quantized_matrices_is_refused(base: Path) -> None:
    model = load_model(base)
    quantize_linears(model, GptqStorage(bits=4, group_size=32, symmetric=True))
    add_lora(model, LoraSettings(rank=2, alpha=2), ["o_proj"], seed=0)
    with pytest.raises(ConfigError, match=r"o_proj is quantized.*rounded away"):
        merge_adapter(model)


@torch.no_grad()
def test_a_folder_with_only_an_adapter_brings_its_model_and_folds_its_rows(base: Path) -> None:
    adapter = make_adapter(base, rows=(3, 7))
    both, alone = load_model(base, adapter=adapter), load_model(adapter)
    assert torch.equal(both(IDS), alone(IDS))
    assert not isinstance(alone.embed_tokens, TokenRows) and lora_modules(alone)
    assert read_config(adapter) == read_config(base)


def test_an_adapter_whose_model_is_gone_says_what_to_do(base: Path) -> None:
    adapter = make_adapter(base)
    base.rename(base.parent / "elsewhere")
    with pytest.raises(HubError, match=r"(?s)is an adapter for .*base_model_name_or_path") as caught:
        load_model(adapter)
    assert "adapter=folder" in str(caught.value)
    assert lora_modules(load_model(base.parent / "elsewhere", adapter=adapter))
    values = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(HubError, match="does not say which model"):
        model_under(adapter)


def test_what_needs_a_whole_model_refuses_an_adapter(base: Path) -> None:
    adapter = make_adapter(base)
    assert resolve_model(adapter) == adapter and resolve_whole_model(base, purpose="it") == base
    with pytest.raises(HubError, match=r"holds an adapter; quantizing needs a whole model") as caught:
        resolve_whole_model(adapter, purpose="quantizing")
    assert "merge" in str(caught.value)
