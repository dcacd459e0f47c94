"""A damaged, incomplete or foreign directory is refused by name; a good one loads to the bit, in any dtype."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from leveret.errors import (
    ConfigError,
    CorruptedFile,
    MissingWeights,
    ShapeMismatch,
    UnexpectedWeights,
    UnsafeFile,
    WeightsError,
)
from leveret.model.decoder import Decoder
from leveret.weights.load import load_model, read_config

UP = "model.layers.1.mlp.up_proj.weight"


def edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def edit_config(directory: Path, **changes: Any) -> None:
    values = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(values))


def same(left: Decoder, right: Decoder) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_come_back_to_the_bit_from_one_file_and_from_shards(model, directory, sharded) -> None:
    assert same(load_model(directory), model)
    assert same(load_model(sharded), model)
    assert len(list(sharded.glob("*.safetensors"))) > 2


def test_the_older_bin_form_is_read_single_and_sharded(model, directory, sharded) -> None:
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(tensors, directory / "pytorch_model.bin")
    assert same(load_model(directory), model)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    for shard in set(index["weight_map"].values()):
        torch.save(load_file(sharded / shard), sharded / shard.replace("safetensors", "bin"))
        (sharded / shard).unlink()
    index["weight_map"] = {name: file.replace("safetensors", "bin") for name, file in index["weight_map"].items()}
    (sharded / "model.safetensors.index.json").unlink()
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert same(load_model(sharded), model)


def test_a_bin_file_with_code_in_it_is_refused(directory) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"x": Path}, directory / "pytorch_model.bin")
    with pytest.raises(UnsafeFile, match=r"pytorch_model\.bin"):
        load_model(directory)


@pytest.mark.parametrize(("asked", "got"), [(None, torch.float32), ("bf16", torch.bfloat16), (torch.float16,) * 2])
def test_the_dtype_is_the_stored_one_or_the_one_asked_for(asked, got, directory) -> None:
    loaded = load_model(directory, dtype=asked)
    assert {parameter.dtype for parameter in loaded.parameters()} == {got}


def test_stored_dtypes_that_differ_become_the_embeddings(model, directory) -> None:
    edit(directory, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items() if "norm" not in n}))
    assert {parameter.dtype for parameter in load_model(directory).parameters()} == {torch.bfloat16}


def test_an_unknown_dtype_lists_the_known_ones(directory) -> None:
    with pytest.raises(ConfigError, match="int3' is unknown; known are float32"):
        load_model(directory, dtype="int3")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", None])
def test_a_device_that_is_not_there_is_named(directory, device) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used: "):
        load_model(directory, device=device)


def test_a_type_without_fractions_is_refused(directory) -> None:
    with pytest.raises(ConfigError, match=r"dtype torch\.int8 cannot hold"):
        load_model(directory, dtype=torch.int8)


def test_a_quantization_that_is_no_mapping_is_named(directory) -> None:
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {"quantization_config": "int4"}))
    with pytest.raises(ConfigError, match="quantization_config is 'int4', it must be a mapping"):
        load_model(directory)


def test_a_loaded_model_does_not_depend_on_the_file_any_more(model, directory) -> None:
    loaded = load_model(directory)
    (directory / "model.safetensors").write_bytes(b"")
    assert same(loaded, model)


def test_missing_tensors_are_named(directory) -> None:
    edit(directory, lambda tensors: tensors.pop(UP))
    with pytest.raises(MissingWeights, match=f"1 of the tensors .*{UP}"):
        load_model(directory)


def test_surplus_tensors_are_named(directory) -> None:
    edit(directory, lambda tensors: tensors.update({"model.layers.7.mlp.up_proj.weight": torch.ones(2)}))
    with pytest.raises(UnexpectedWeights, match=r"1 tensors .*layers\.7"):
        load_model(directory)


def test_an_index_that_names_no_files_is_damaged(sharded) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {UP: 5}}))
    with pytest.raises(CorruptedFile, match="has no weight_map from tensors to files"):
        load_model(sharded)


def test_a_bias_that_the_model_would_ignore_is_refused(directory) -> None:
    edit(directory, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}))
    with pytest.raises(UnexpectedWeights, match=r"q_proj\.bias"):
        load_model(directory)


def test_renamed_tensors_are_reported_from_both_sides(directory) -> None:
    edit(directory, lambda tensors: tensors.update({"other.weight": tensors.pop(UP)}))
    with pytest.raises(MissingWeights, match=rf"{UP}; 1 others have no place: other\.weight"):
        load_model(directory)


def test_old_frequency_buffers_are_the_one_thing_passed_over(model, directory) -> None:
    edit(directory, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert same(load_model(directory), model)


def test_wrong_shapes_are_named_with_both_shapes(directory) -> None:
    edit(directory, lambda tensors: tensors.update({UP: torch.ones(47, 32)}))
    with pytest.raises(ShapeMismatch, match=rf"{UP} in .*model.safetensors has shape \(47, 32\).*\(48, 32\)"):
        load_model(directory)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_a_truncated_file_is_refused_whatever_is_left_of_it(keep: float, directory, sharded) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    for file in (directory / "model.safetensors", shard):
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
        with pytest.raises(CorruptedFile, match=file.name):
            load_model(file.parent)


def test_a_truncated_bin_file_is_refused(directory) -> None:
    file = directory / "pytorch_model.bin"
    torch.save(load_file(directory / "model.safetensors"), file)
    (directory / "model.safetensors").unlink()
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CorruptedFile, match=r"pytorch_model\.bin"):
        load_model(directory)


def test_a_missing_shard_is_named(sharded) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(MissingWeights, match=shard.name):
        load_model(sharded)


def test_a_shard_that_holds_other_tensors_than_the_index_says_is_refused(sharded) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(MissingWeights, match=f"{first.name} lacks"):
        load_model(sharded)


def test_a_directory_without_weights_or_config_says_which(directory, tmp_path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(MissingWeights, match="holds no weights"):
        load_model(directory)
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        load_model(tmp_path)


def test_a_broken_config_names_the_file_and_the_line(directory) -> None:
    (directory / "config.json").write_text('{\n"vocab_size": 1,,\n}')
    with pytest.raises(CorruptedFile, match=r"config\.json is no JSON.*line 2"):
        load_model(directory)
    (directory / "config.json").write_text("[]")
    with pytest.raises(CorruptedFile, match="holds a list"):
        read_config(directory)


def test_a_config_error_names_the_file(directory) -> None:
    edit_config(directory, mlp_bias=True)
    with pytest.raises(ConfigError, match=r"config\.json: .*mlp_bias = True"):
        load_model(directory)


def test_a_byte_order_mark_before_config_json_is_passed_over(directory) -> None:
    before = read_config(directory)
    file = directory / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_config(directory) == before
    load_model(directory)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"eos_token_id": [2, 100_000]}, "eos_token_id 100000"),
        ({"bos_token_id": -1, "eos_token_id": 100_000}, "bos_token_id -1, eos_token_id 100000"),
        ({"pad_token_id": 100_000}, "pad_token_id 100000"),
    ],
)
def test_special_ids_that_no_token_has_are_told(values: dict[str, Any], told: str, directory) -> None:
    file = directory / "config.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps(before | values))
    with pytest.warns(UserWarning, match=f"{told}: there are"):
        load_model(directory)
    file.write_text(json.dumps(before | {"pad_token_id": -1}))
    load_model(directory)


def test_a_key_given_twice_counts_as_the_last_one_and_is_reported(directory) -> None:
    values = json.loads((directory / "config.json").read_text())
    del values["rope_parameters"], values["rope_scaling"]
    text = json.dumps(values)[:-1] + ', "rope_scaling": {"type": "linear", "factor": 4.0}, "rope_scaling": null}'
    (directory / "config.json").write_text(text)
    with pytest.warns(UserWarning, match="'rope_scaling' more than once; the last one counts: None"):
        assert read_config(directory).rope.kind == "default"


def test_a_tied_head_may_be_absent_or_equal_but_not_different(directory) -> None:
    edit(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    edit_config(directory, tie_word_embeddings=True)
    loaded = load_model(directory, dtype="bf16")
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    edit(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    with pytest.raises(UnexpectedWeights, match="has its own lm_head"):
        load_model(directory)
    edit(directory, lambda tensors: tensors.pop("lm_head.weight"))
    assert load_model(directory).config.tie_word_embeddings
    edit_config(directory, tie_word_embeddings=False)
    with pytest.raises(MissingWeights, match=r"lm_head\.weight[\s\S]*tie_word_embeddings"):
        load_model(directory)


def test_the_folder_of_a_run_is_told_with_the_model_in_it(tmp_path):
    for result, config in (("model", "config.json"), ("adapter", "adapter_config.json")):
        run = tmp_path / result
        (run / result).mkdir(parents=True)
        (run / result / config).write_text("{}")
        with pytest.raises(WeightsError, match="no model directory") as caught:
            read_config(run)
        assert str(run / result) in (caught.value.hint or "")
