"""Adapters between Leveret and peft, both ways with equal logits; and folders that are not whole are refused."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from leveret.errors import ConfigError, CorruptedFile, MissingWeights, ShapeMismatch, UnexpectedWeights, WeightsError
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.lora import LoraSettings, lora_modules
from leveret.model.lora_targets import add_lora, train_whole
from leveret.model.token_rows import TokenRows, train_rows
from leveret.weights.adapter import save_adapter, unfit_for_peft
from leveret.weights.adapter_load import load_adapter
from leveret.weights.fingerprint import fingerprint_of
from leveret.weights.load import load_model
from leveret.weights.save import save_model
from leveret.weights.tokens import resize_tokens

peft = pytest.importorskip("peft", reason="the oracle of this file")
transformers = pytest.importorskip("transformers", reason="the oracle of this file")

pytestmark = pytest.mark.filterwarnings(r"ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's use

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
VOCABULARY = 40
IDS = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))


def make_base(folder: Path, family: str = "mistral", **changes: Any) -> Path:
    moe = MoeConfig(num_experts=4, experts_per_token=2) if family == "mixtral" else None
    config = ModelConfig(family=family, vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, moe=moe,
                         num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **changes)  # fmt: skip
    model = Decoder(config)
    init_weights(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    save_model(model, folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def disturb(model: torch.nn.Module) -> None:
    """Make everything that is trained different from its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))


def make_adapter(
    base: Path, folder: Path, targets: Any = "all-linear", *, save: tuple[str, ...] = (), **options: Any
) -> Decoder:
    """An adapter of ours, disturbed and saved; the model with it."""
    model = load_model(base)
    add_lora(model, LoraSettings(**{"rank": 4, "alpha": 8} | options), targets, seed=0)
    for name in save:
        model.get_submodule(name.removeprefix("model.")).requires_grad_()
    disturb(model)
    save_adapter(model, folder, base=str(base), fingerprint=fingerprint_of(base), saved_modules=save)
    return model.requires_grad_(False)


def loaded(base: Path, folder: Path) -> Decoder:
    model = load_model(base)
    load_adapter(model, folder, fingerprint=fingerprint_of(base))
    return model


def by_peft(base: Path, folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    return peft.PeftModel.from_pretrained(model, folder)


def as_llama_with_fused_attention(model: Any) -> Any:
    """A transformers Llama whose q, k and v are one Linear `qkv_proj`, as LingoWhale's code has it."""
    for layer in model.model.layers:
        attention = layer.self_attn
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        fused = torch.nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), bias=False)
        fused.weight.data = torch.cat([part.weight.data for part in parts])
        sizes = [part.out_features for part in parts]
        del attention.q_proj, attention.k_proj, attention.v_proj
        attention.qkv_proj = fused
        for index, letter in enumerate("qkv"):

            def piece(x: torch.Tensor, attention: Any = attention, index: int = index) -> torch.Tensor:
                return attention.qkv_proj(x).split(sizes, dim=-1)[index]  # noqa: B023  # the same in every layer

            object.__setattr__(attention, f"{letter}_proj", piece)
    return model


FORMS: list[tuple[str, dict[str, Any], Any, dict[str, Any]]] = [
    ("mistral", {}, "all-linear", {}),
    ("mistral", {}, ["q_proj", "v_proj"], {"rslora": True}),
    ("llama", {"tie_word_embeddings": True}, r"model\.layers\.1\..*_proj", {}),
    ("llama", {}, "all-linear", {"dora": True}),
    ("mixtral", {}, ATTENTION, {}),
    ("mixtral", {}, ["w1", "w2", "w3"], {}),
    ("mixtral", {}, "all-linear", {"rslora": True}),
    ("mixtral", {}, ["q_proj", "gate"], {}),
    ("mixtral", {}, ["q_proj", "gate"], {"dropout": 0.1}),
    ("mixtral", {}, "all-linear", {"dropout": 0.1}),
    ("mixtral", {}, ["w2"], {}),
]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")  # of peft's own making
@pytest.mark.parametrize(("family", "changes", "targets", "options"), FORMS)
def test_what_is_saved_here_gives_the_same_logits_in_peft_and_here(
    tmp_path: Path, family: str, changes: dict[str, Any], targets: Any, options: dict[str, Any]
) -> None:
    base, folder = make_base(tmp_path / "base", family, **changes), tmp_path / "adapter"
    trained = make_adapter(base, folder, targets, **options).eval()
    assert unfit_for_peft(trained) is None
    wanted = trained(IDS)
    assert (wanted - load_model(base)(IDS)).norm() > 0.05 * wanted.norm()
    assert torch.equal(loaded(base, folder)(IDS), wanted)
    torch.testing.assert_close(by_peft(base, folder)(IDS).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys", "ignore:The following (rank|alpha)_pattern keys")
@pytest.mark.parametrize(
    ("targets", "options", "why"),
    [
        ("all-linear", {"dora": True}, "DoRA"),
        (["gate"], {"dora": True}, "DoRA"),
        (["w1"], {}, "all of w1, w2 and w3"),
        (["w1", "w3"], {}, "all of w1, w2 and w3"),
        (r".*experts\.[0-2]\..*", {}, "all of w1, w2 and w3"),
    ],
)
def test_what_peft_cannot_load_of_a_mixture_is_said(
    tmp_path: Path, targets: Any, options: dict[str, Any], why: str
) -> None:
    base, folder = make_base(tmp_path / "base", "mixtral"), tmp_path / "adapter"
    trained = make_adapter(base, folder, targets, **options)
    assert why in (unfit_for_peft(trained) or "")
    with torch.no_grad():
        wanted = trained(IDS)
        assert torch.equal(loaded(base, folder)(IDS), wanted)
        try:
            theirs = by_peft(base, folder)(IDS).logits
        except (ValueError, RuntimeError):
            return
    assert (theirs - wanted).norm() > 0.01 * wanted.norm()


TABLES = ["embed_tokens", "lm_head"]
NORMS = ("model.layers.0.input_layernorm", "model.layers.1.input_layernorm")
MADE_BY_PEFT: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"target_modules": "all-linear", "use_rslora": True}, ()),
    ({"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 6}, "alpha_pattern": {"0.*q_proj": 3}}, ()),
    ({"target_modules": r".*\.[vk]_proj", "use_dora": True}, ()),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, ()),
    ({"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["input_layernorm"]}, NORMS),
    ({"target_modules": ["q_proj"], "modules_to_save": TABLES}, ("model.embed_tokens", "lm_head")),
    ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}, ()),
    ({"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [5, 4]}}, ()),
]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(("options", "whole"), MADE_BY_PEFT)
@pytest.mark.parametrize("tied", [False, True])
def test_what_peft_saves_gives_the_same_logits_here_and_when_saved_again(
    tmp_path: Path, options: dict[str, Any], whole: tuple[str, ...], tied: bool
) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=tied)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)).eval()
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    wanted = theirs(IDS).logits
    ours = loaded(base, tmp_path / "adapter")
    torch.testing.assert_close(ours(IDS), wanted, rtol=1e-4, atol=1e-4)
    save_adapter(ours, tmp_path / "again", base=str(base), saved_modules=whole)
    torch.testing.assert_close(by_peft(base, tmp_path / "again")(IDS).logits, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_fused_matrix_has_one_adapter_for_peft_and_is_read_back(tmp_path: Path) -> None:
    base, folder = make_base(tmp_path / "base", "lingowhale"), tmp_path / "adapter"
    wanted = make_adapter(base, folder, ["qkv_proj", "o_proj"])(IDS)
    assert torch.equal(loaded(base, folder)(IDS), wanted)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.qkv_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (4, 16) and tensors[f"{name}.lora_B.weight"].shape == (32, 4)
    values = json.loads((base / "config.json").read_text())
    split = load_model(base)
    split.config = ModelConfig(**vars(split.config) | {"family": "llama"})
    save_model(split, tmp_path / "llama")
    assert values["model_type"] == "lingowhale"
    fused = as_llama_with_fused_attention(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval())
    theirs = peft.PeftModel.from_pretrained(fused, folder)
    torch.testing.assert_close(theirs(IDS).logits, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_modules_trained_whole_are_saved_so_that_peft_gives_the_same(tmp_path: Path, tied: bool) -> None:
    base, folder = make_base(tmp_path / "base", tie_word_embeddings=tied), tmp_path / "adapter"
    save = ("model.embed_tokens",) if tied else ("lm_head", "model.embed_tokens", "model.norm")
    wanted = make_adapter(base, folder, ["q_proj"], save=save)(IDS)
    assert torch.equal(loaded(base, folder)(IDS), wanted)
    torch.testing.assert_close(by_peft(base, folder)(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    assert loaded(base, folder).config.tie_word_embeddings == tied


@torch.no_grad()
def test_routers_trained_whole_mean_the_same_to_peft_both_ways(tmp_path: Path) -> None:
    base, folder = make_base(tmp_path / "base", "mixtral"), tmp_path / "adapter"
    routers = tuple(f"model.layers.{layer}.block_sparse_moe.gate" for layer in range(2))
    model = load_model(base)
    add_lora(model, LoraSettings(rank=4, alpha=8), ["q_proj"], seed=0)
    train_whole(model, ["gate"])
    disturb(model)
    save_adapter(model, folder, base=str(base), saved_modules=routers)
    wanted = model(IDS)
    assert torch.equal(loaded(base, folder)(IDS), wanted)
    torch.testing.assert_close(by_peft(base, folder)(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    options = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["gate"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(theirs, options).eval()
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(loaded(base, tmp_path / "theirs")(IDS), theirs(IDS).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_copies_of_a_tied_table_that_were_trained_apart_untie_the_model(tmp_path: Path) -> None:
    base, folder = make_base(tmp_path / "base", tie_word_embeddings=True), tmp_path / "adapter"
    make_adapter(base, folder, ["q_proj"], save=("model.embed_tokens",))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"] *= 2
    save_file(tensors, folder / "adapter_model.safetensors")
    ours = loaded(base, folder)
    assert not ours.config.tie_word_embeddings
    change(folder, "ensure_weight_tying", False)
    with pytest.warns(UserWarning, match="ensure_weight_tying"):  # peft, of what is seen here
        theirs = by_peft(base, folder)
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [[38, 39], [39, 40, 41]])  # the last two do not exist in the base
def test_rows_of_new_tokens_are_saved_alone(tmp_path: Path, tied: bool, rows: list[int]) -> None:
    base, folder = make_base(tmp_path / "base", tie_word_embeddings=tied), tmp_path / "adapter"
    model = load_model(base)
    resize_tokens(model, max(VOCABULARY, max(rows) + 1))
    size = model.config.vocab_size
    add_lora(model, LoraSettings(rank=2, alpha=2), ["q_proj"], seed=0)
    train_rows(model, rows)
    disturb(model)
    save_adapter(model, folder, base=str(base))
    ids = torch.tensor([[1, *rows, 2]])
    ours = loaded(base, folder)
    assert torch.equal(ours(ids), model(ids))
    assert isinstance(ours.embed_tokens, TokenRows)
    assert torch.equal(ours.embed_tokens.weight[:38], load_model(base).embed_tokens.weight[:38])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    theirs.resize_token_embeddings(size, mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(theirs, folder)
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-4, atol=1e-4)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sum("trainable_tokens_delta" in name for name in tensors) == (1 if tied else 2)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("tied", [False, True])
def test_tables_that_peft_saves_under_the_rows_of_new_tokens_are_read(tmp_path: Path, tied: bool) -> None:
    base, size = make_base(tmp_path / "base", tie_word_embeddings=tied), VOCABULARY + 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs.resize_token_embeddings(size, mean_resizing=False)
    new = peft.LoraConfig(
        target_modules=["q_proj"], trainable_token_indices=[size - 2, size - 1], task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(theirs, new).eval()
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    ours, ids = loaded(base, tmp_path / "adapter"), torch.arange(size).unsqueeze(0)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert ours.config.tie_word_embeddings == tied


@torch.no_grad()
def test_an_adapter_takes_the_dtype_of_its_model_and_leaves_what_must_stay_exact(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "adapter")
    model = load_model(base, dtype="bfloat16")
    load_adapter(model, tmp_path / "adapter")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    plain = {name: buffer.dtype for name, buffer in load_model(base, dtype="bfloat16").named_buffers()}
    assert {name: buffer.dtype for name, buffer in model.named_buffers()} == plain


def test_another_model_underneath_is_noticed(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "adapter")
    other = load_model(base)
    with torch.no_grad():
        other.layers[1].mlp.up_proj.weight[0, 0] += 1
    save_model(other, tmp_path / "other")
    with pytest.warns(UserWarning, match="was trained on other weights"):
        loaded(tmp_path / "other", tmp_path / "adapter")


def test_the_fingerprint_does_not_depend_on_how_tensors_are_spread_over_files(base: Path, tmp_path: Path) -> None:
    save_model(load_model(base), tmp_path / "sharded", shard_bytes=2000)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert fingerprint_of(tmp_path / "sharded") == fingerprint_of(base) is not None
    assert fingerprint_of(tmp_path) is None


def change(folder: Path, key: str, value: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


def lose(folder: Path, ending: str) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.endswith(ending)}, file)


def add(folder: Path, name: str, *shape: int) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file) | {name: torch.ones(shape)}, file)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
WRONG = [
    (
        lambda f: lose(f, "layers.0.self_attn.q_proj.lora_B.weight"),
        MissingWeights,
        "lacks lora_A and lora_B of 1 targets",
    ),
    (lambda f: lose(f, ".weight"), MissingWeights, "lacks lora_A and lora_B of 2 targets"),
    (lambda f: (lose(f, "weight"), change(f, "target_modules", [])), MissingWeights, "changes nothing"),
    (lambda f: add(f, f"{Q0}.lora_embedding_A", 2, 2), UnexpectedWeights, "unknown kind"),
    (lambda f: add(f, "model.layers.0.self_attn.q_proj.lora_A.weight", 4, 16), UnexpectedWeights, "unknown kind"),
    (lambda f: add(f, "base_model.model.model.layers.9.mlp.up_proj.weight", 4, 16), UnexpectedWeights, "no place"),
    (lambda f: add(f, f"{Q0}.lora_magnitude_vector", 16), UnexpectedWeights, "no place"),
    (lambda f: add(f, f"{Q0}.lora_B.weight", 8, 4), ShapeMismatch, "has 8 rows, 16 are expected"),
    (lambda f: add(f, f"{Q0}.lora_A.weight", 3, 16), ShapeMismatch, r"\(3, 16\), \(4, 16\) is expected"),
    (lambda f: change(f, "modules_to_save", ["lm_head"]), MissingWeights, "modules_to_save names lm_head"),
    (lambda f: change(f, "trainable_token_indices", [3]), MissingWeights, "no rows for the tokens of embed_tokens"),
    (lambda f: change(f, "use_dora", True), MissingWeights, "no lora_magnitude_vector"),
    (lambda f: change(f, "peft_type", "IA3"), ConfigError, "only LORA and PREFIX_TUNING"),
    (lambda f: change(f, "bias", "all"), ConfigError, "only 'none' is known"),
    (lambda f: change(f, "r", None), ConfigError, "r is missing"),
    (lambda f: change(f, "init_lora_weights", "pissa"), ConfigError, "changes the model underneath"),
    (lambda f: change(f, "lora_bias", True), ConfigError, "lora_bias = True is unknown"),
    (lambda f: change(f, "target_parameters", ["experts.up"]), ConfigError, "target_parameters"),
    (lambda f: (f / "adapter_model.safetensors").write_bytes(b"half"), CorruptedFile, "cannot be read"),
    (lambda f: (f / "adapter_model.safetensors").unlink(), MissingWeights, "is not there"),
    (lambda f: (f / "adapter_config.json").unlink(), WeightsError, "no adapter folder"),
]


@pytest.mark.parametrize(("damage", "error", "match"), WRONG)
def test_what_is_not_whole_or_not_known_is_refused(
    base: Path, tmp_path: Path, damage: Any, error: type[Exception], match: str
) -> None:
    make_adapter(base, tmp_path / "adapter", ["q_proj"])
    damage(tmp_path / "adapter")
    with pytest.raises(error, match=match):
        loaded(base, tmp_path / "adapter")


def test_an_adapter_for_a_larger_model_is_refused(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "adapter", ["q_proj"])
    shutil.rmtree(base)
    make_base(base, head_dim=8)
    with pytest.raises(ShapeMismatch, match="16 rows, 32 are expected"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded(base, tmp_path / "adapter")


def test_modules_with_other_ranks_are_saved_as_exceptions(base: Path, tmp_path: Path) -> None:
    model = load_model(base)
    add_lora(model, LoraSettings(rank=4, alpha=8), ["q_proj", "v_proj"], seed=0)
    add_lora(model, LoraSettings(rank=2, alpha=5), ["layers.0.mlp.up_proj"], seed=0)
    model.requires_grad_(True)
    disturb(model)
    save_adapter(model, tmp_path / "adapter", base=str(base))
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert values["r"] == 4 and values["lora_alpha"] == 8 and len(values["rank_pattern"]) == 1
    model = loaded(base, tmp_path / "adapter")
    assert {module.settings.scale for module in lora_modules(model).values()} == {2.0, 2.5}
