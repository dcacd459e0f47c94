"""The verb from directories to directory: what is written, what comes out to the bit, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import (
    ConfigError,
    HubError,
    LeveretError,
    MissingWeights,
    ShapeMismatch,
    UnexpectedWeights,
    WeightsError,
)
from leveret.merge import blocks
from leveret.merge.config import MergeConfig
from leveret.merge.run import run
from leveret.model.config import MoeConfig, RopeConfig
from leveret.weights.load import load_model

MakeModel = Callable[..., Path]
Tensors = dict[str, torch.Tensor]


def merge(output: Path, *models: Path, **changes: Any) -> Tensors:
    data = {"models": [str(model) for model in models], "output": output} | changes
    run(parse_config(MergeConfig, data, source="test"), Console(quiet=True))
    return tensors(output)


def tensors(folder: Path) -> Tensors:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def equal(first: Tensors, second: Tensors) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def three(make_model: MakeModel) -> list[Path]:
    return [make_model(name, seed) for seed, name in enumerate(("base", "a", "b"))]


WITH_BASE = ["task-arithmetic", "ties", "dare", "dare-ties", "model-stock"]


@pytest.mark.parametrize("method", ["linear", "slerp", *WITH_BASE])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_merged_with_itself_is_itself(make_model: MakeModel, tmp_path: Path, method: str, dtype: str) -> None:
    model = make_model("m", dtype=dtype)
    changes = {"base": str(model)} if method in WITH_BASE else {}
    merge(tmp_path / "out", model, model, method=method, **changes)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        first, second = ((folder / name).read_bytes() for folder in (model, tmp_path / "out"))
        assert equal(tensors(model), tensors(tmp_path / "out")) if name.startswith("model") else first == second


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "linear", "weights": [1, 0]},
        {"method": "slerp", "t": 0},
        {"method": "passthrough", "layers": [[0, 3], [0, 3]]},
    ],
    ids=lambda changes: changes["method"],
)
def test_the_first_model_comes_out_to_the_bit_where_only_it_counts(
    three: list[Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    _, a, b = three
    models = [a] if changes["method"] == "passthrough" else [a, b]
    changes = changes | ({"layers": [[0, 3]]} if len(models) == 1 else {})
    assert equal(merge(tmp_path / "out", *models, **changes), tensors(a))


@pytest.mark.parametrize(
    ("method", "changes"),
    [("task-arithmetic", {}), ("ties", {"density": 1}), ("dare", {"drop": 0}), ("dare-ties", {"drop": 0})],
)
@pytest.mark.parametrize("copies", [1, 3])
def test_one_model_s_whole_change_on_the_base_is_the_model(
    three: list[Path], tmp_path: Path, method: str, changes: dict[str, Any], copies: int
) -> None:
    base, a, _ = three
    weights = {} if "ties" in method else {"normalize": True}
    out = merge(tmp_path / "out", *[a] * copies, method=method, base=str(base), **changes, **weights)
    assert equal(out, tensors(a))


def test_linear_is_the_weighted_mean_rounded_once(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = (make_model(name, seed, dtype="bfloat16") for seed, name in enumerate("ab"))
    out = merge(tmp_path / "out", a, b, weights=[0.25, 0.75])
    first, second = tensors(a), tensors(b)
    for name, tensor in out.items():
        assert torch.equal(tensor, (0.25 * first[name].double() + 0.75 * second[name].double()).bfloat16())


def ties_of(base: torch.Tensor, models: list[torch.Tensor], density: float) -> np.ndarray:
    origin = base.double().numpy().ravel()
    changes = []
    for model in models:
        change = model.double().numpy().ravel() - origin
        least = np.sort(np.abs(change))[::-1][int(density * change.size) - 1]
        changes.append(np.where(np.abs(change) >= least, change, 0))
    stacked = np.array(changes)
    agree = (np.sign(stacked) == np.sign(stacked.sum(axis=0))) & (stacked != 0)
    return origin + (stacked * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)


def test_ties_over_blocks_is_ties_over_whole_tensors(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 700)
    monkeypatch.setattr(blocks, "STREAMED", 700)
    base, *models = three
    out = merge(tmp_path / "out", *models, method="ties", base=str(base), density=0.3)
    held = [tensors(folder) for folder in three]
    for name, tensor in out.items():
        if name.endswith("norm.weight"):
            continue  # all ones in these models: nothing changes
        expected = ties_of(held[0][name], [held[1][name], held[2][name]], 0.3)
        np.testing.assert_allclose(tensor.numpy().ravel(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["slerp", "ties", "model-stock"])
def test_the_size_of_a_block_does_not_matter(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    base, a, b = three
    changes = {} if method == "slerp" else {"base": str(base)}
    whole = merge(tmp_path / "whole", a, b, method=method, **changes)
    monkeypatch.setattr(blocks, "BLOCK", 333)
    monkeypatch.setattr(blocks, "STREAMED", 333)
    cut = merge(tmp_path / "cut", a, b, method=method, **changes)
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-6, atol=1e-7)


def test_shards_in_or_out_change_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    base, a, b = (make_model(name, seed) for seed, name in enumerate(("base", "a", "b")))
    sharded = make_model("sharded", 1, shard_bytes=30_000)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    changes = {"method": "dare-ties", "base": str(base), "seed": 3}
    assert equal(merge(tmp_path / "one", a, b, **changes), merge(tmp_path / "two", sharded, b, **changes))


def test_dare_drops_by_seed_and_name_and_keeps_the_mean(three: list[Path], tmp_path: Path) -> None:
    base, a, _ = three
    changes = {"method": "dare", "base": str(base), "drop": 0.6}
    outs = [merge(tmp_path / str(place), a, seed=seed, **changes) for place, seed in enumerate((1, 1, 2))]
    assert equal(outs[0], outs[1]) and not equal(outs[0], outs[2])
    name = "model.layers.0.mlp.up_proj.weight"
    origin, change = tensors(base)[name], tensors(a)[name] - tensors(base)[name]
    left = outs[0][name] != origin
    assert float(left.float().mean()) == pytest.approx(0.4, abs=0.05)
    torch.testing.assert_close(outs[0][name][left], (origin + change / 0.4)[left], rtol=1e-5, atol=1e-6)


def test_gradients_and_rules_reach_their_tensors(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    rules = [{"tensors": "mlp", "weights": [[0, 0, 1], [1, 1, 0]]}, {"tensors": "up_proj", "weights": [1, 0]}]
    out = merge(tmp_path / "out", a, b, weights=[0, 1], rules=rules)
    first, second = tensors(a), tensors(b)
    for name, tensor in out.items():
        from_a = "up_proj" in name or ("layers.2.mlp" in name)
        assert torch.equal(tensor, (first if from_a else second)[name]), name


def test_passthrough_stacks_layers_and_takes_the_ends_from_the_ends(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    out = merge(tmp_path / "out", a, b, method="passthrough", layers=[[0, 2], [1, 3]])
    first, second = tensors(a), tensors(b)
    assert torch.equal(out["model.embed_tokens.weight"], first["model.embed_tokens.weight"])
    assert torch.equal(out["lm_head.weight"], second["lm_head.weight"])
    name = "model.layers.{}.self_attn.q_proj.weight"
    for layer, (source, old) in enumerate([(first, 0), (first, 1), (second, 1), (second, 2)]):
        assert torch.equal(out[name.format(layer)], source[name.format(old)])
    assert load_model(tmp_path / "out").config.num_hidden_layers == 4


def test_stacked_layers_are_all_in_the_first_model_s_type(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = make_model("a", 1), make_model("b", 2, dtype="bfloat16")
    out = merge(tmp_path / "out", a, b, method="passthrough", layers=[[0, 2], [0, 3]])
    assert {tensor.dtype for tensor in out.values()} == {torch.float32}
    assert torch.equal(out["lm_head.weight"], tensors(b)["lm_head.weight"].float())


def test_what_the_first_model_has_besides_weights_travels(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    merge(tmp_path / "out", a, b, dtype="bfloat16")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (a / name).read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert load_model(tmp_path / "out").embed_tokens.weight.dtype == torch.bfloat16


def test_the_record_says_what_it_was_made_of(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    merge(tmp_path / "out", a, b, method="ties", base=str(base), weights=[0.5, 1], density=0.5)
    record = json.loads((tmp_path / "out" / "leveret-merge.json").read_text())
    assert record["method"] == "ties" and record["settings"] == {"density": 0.5, "scale": 1.0}
    assert [model["weight"] for model in record["models"]] == [0.5, 1]
    assert record["base"]["name"] == str(base) and record["leveret"]
    hashes = {entry["weights"] for entry in (record["base"], *record["models"])}
    assert len(hashes) == 3 and None not in hashes
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2306.01708" in card and str(tmp_path) not in card and "- merge" in card
    assert "ties, density 0.5, scale 1.0 ([arXiv 2306.01708](https://arxiv.org/abs/2306.01708)).\n" in card


@pytest.mark.parametrize("family", ["llama", "mixtral", "lingowhale", "aquila"])
def test_every_family_is_merged_and_read_back(make_model: MakeModel, tmp_path: Path, family: str) -> None:
    moe = MoeConfig(num_experts=4) if family == "mixtral" else None
    a, b = (make_model(name, seed, family=family, moe=moe) for seed, name in enumerate("ab"))
    merge(tmp_path / "out", a, b)
    first, second, out = (load_model(folder).state_dict() for folder in (a, b, tmp_path / "out"))
    for name, tensor in out.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)
    notes = json.loads((tmp_path / "out" / "leveret-merge.json").read_text())["notes"]
    assert any("experts" in note for note in notes) == (family == "mixtral")


def test_bin_files_are_read_too(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    expected = merge(tmp_path / "one", a, b)
    torch.save(tensors(b), b / "pytorch_model.bin")
    (b / "model.safetensors").unlink()
    assert equal(merge(tmp_path / "two", a, b), expected)


def test_a_tied_head_that_is_stored_all_the_same_does_no_harm(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = (make_model(name, seed, tie_word_embeddings=True) for seed, name in enumerate("ab"))
    held = tensors(b)
    save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}, b / "model.safetensors")
    out = merge(tmp_path / "out", a, b)
    assert "lm_head.weight" not in out
    model = load_model(tmp_path / "out")
    assert model.lm_head.weight is model.embed_tokens.weight


def test_weights_that_do_not_sum_to_one_count_and_are_reported(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    out = merge(tmp_path / "out", a, b, weights=[1, 1])
    name = "lm_head.weight"
    torch.testing.assert_close(out[name], tensors(a)[name] + tensors(b)[name])
    assert "weights sum to 2" in json.loads((tmp_path / "out" / "leveret-merge.json").read_text())["notes"][0]
    mean = merge(tmp_path / "mean", a, b, weights=[1, 1], normalize=True)
    torch.testing.assert_close(mean[name], (tensors(a)[name] + tensors(b)[name]) / 2)


def test_another_rope_is_reported_and_another_width_refused(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = make_model("a"), make_model("b", rope=RopeConfig(theta=5e5))
    merge(tmp_path / "out", a, b)
    assert "500000" in json.loads((tmp_path / "out" / "leveret-merge.json").read_text())["notes"][0]
    with pytest.raises(ConfigError, match=r"num_hidden_layers is 3 in .*a and 2 in .*c"):
        merge(tmp_path / "out2", a, make_model("c", num_hidden_layers=2))
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        merge(tmp_path / "out2", a, make_model("d", tie_word_embeddings=True))
    assert not (tmp_path / "out2").exists()


def changed(folder: Path, change: Callable[[Tensors], object]) -> Path:
    held = tensors(folder)
    change(held)
    save_file(held, folder / "model.safetensors")
    return folder


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda held: held.pop(NORM), MissingWeights, rf"1 of the tensors the config asks for are not in .*b: {NORM}"),
        (lambda held: held.update(extra=torch.ones(1)), UnexpectedWeights, "extra"),
        (lambda held: held.update({NORM: torch.ones(31)}), ShapeMismatch, rf"{NORM} in .*b.* has shape \(31,\)"),
        (lambda held: held[NORM].fill_(float("nan")), WeightsError, f"{NORM} holds values that are no finite"),
    ],
    ids=["missing", "extra", "shape", "nan"],
)
def test_tensors_that_do_not_fit_are_named(
    three: list[Path], tmp_path: Path, change: Callable[[Tensors], object], error: type[LeveretError], message: str
) -> None:
    _, a, b = three
    changed(b, change)
    with pytest.raises(error, match=message):
        merge(tmp_path / "out", a, b)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_an_overflow_of_float16_is_told(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    changed(b, lambda held: held[NORM].fill_(1e6))
    with pytest.raises(WeightsError, match="overflows float16"):
        merge(tmp_path / "out", a, b, dtype="float16")


def test_an_adapter_is_no_model_to_merge(three: list[Path], tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(three[0])}))
    with pytest.raises(HubError, match="holds an adapter; merging models needs a whole model"):
        merge(tmp_path / "out", tmp_path / "lora", three[1])


def test_a_quantized_model_is_refused(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    config = json.loads((b / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (b / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="is quantized"):
        merge(tmp_path / "out", a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ties"}, "say with `base`"),
        ({"method": "linear", "density": 0.5}, "linear does not use density"),
        ({"rules": [{"tensors": "mlp", "t": 0.5}]}, "linear does not use t"),
        ({"weights": [1]}, "1 weights for 2 models"),
        ({"method": "slerp", "models": ["a", "b", "c"]}, "3 are given"),
        ({"method": "passthrough"}, "needs `layers`"),
        ({"method": "passthrough", "layers": [[0, 1]]}, "1 ranges of layers for 2 models"),
        ({"rules": [{"tensors": "("}]}, "not a regular expression"),
        ({"method": "ties", "base": "c", "weights": [1, -1]}, "negative"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(MergeConfig, {"models": ["a", "b"], "output": "out"} | changes, source="test")


@pytest.mark.parametrize("method", ["linear", "passthrough"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda held: held.pop(NORM), MissingWeights, rf"are not in .*a: {NORM}"),
        (lambda held: held.update({NORM: torch.ones(32, dtype=torch.int8)}), WeightsError, "int8"),
        (lambda held: held[NORM].fill_(float("inf")), WeightsError, NORM),
    ],
    ids=["missing", "whole numbers", "infinite"],
)
def test_a_model_that_is_not_whole_is_refused_although_no_other_is(
    three: list[Path], tmp_path: Path, method: str, change: Callable[[Tensors], object], error: type[LeveretError],
    message: str,
) -> None:  # fmt: skip
    changed(three[1], change)
    with pytest.raises(error, match=message):
        merge(tmp_path / "out", three[1], method=method)


def test_a_head_of_its_own_under_a_config_that_ties_it_is_not_dropped(three: list[Path], tmp_path: Path) -> None:
    values = json.loads((three[1] / "config.json").read_text())
    (three[1] / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": True}))
    with pytest.raises(UnexpectedWeights, match=r"own lm_head\.weight"):
        merge(tmp_path / "out", three[1])


def test_a_rule_for_no_tensor_is_told(three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = [{"tensors": "mpl", "weights": [1, 0]}, {"tensors": "mlp", "weights": [1, 0]}]
    data = {"models": [str(model) for model in three[1:]], "output": tmp_path / "out", "rules": rules}
    run(parse_config(MergeConfig, data, source="test"), Console())
    assert capsys.readouterr().err.count("rules: no tensor has") == 1


def test_weights_that_sum_to_nothing_are_not_normalized(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sum to 0"):
        merge(tmp_path / "out", *three[1:], weights=[1, -1], normalize=True)


def test_the_config_names_the_type_in_both_places_and_no_code(three: list[Path], tmp_path: Path) -> None:
    values = json.loads((three[1] / "config.json").read_text())
    values |= {"dtype": "float32", "torch_dtype": "float32", "auto_map": {"AutoConfig": "code.Config"}}
    (three[1] / "config.json").write_text(json.dumps(values))
    merge(tmp_path / "out", *three[1:], dtype="bfloat16")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == "bfloat16" and "auto_map" not in written


def test_a_range_of_layers_outside_the_model_is_refused(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers \[2, 5\] of .*a, which has 3"):
        merge(tmp_path / "out", three[1], method="passthrough", layers=[[2, 5]])


def test_a_model_is_never_replaced_by_what_is_made_of_it(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    for output in (a, tmp_path):
        with pytest.raises(ConfigError, match="would replace"):
            merge(output, a, b)
    assert (a / "model.safetensors").is_file()


def test_a_folder_that_is_no_model_is_told(three: list[Path], tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with pytest.raises(WeightsError, match=r"adapter is no model directory"):
        merge(tmp_path / "out", three[1], tmp_path / "adapter")
