"""A save is whole or it is no model; what was in the directory before is neither mixed in nor harmed."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
from pathlib import Path

import pytest
import torch

from leveret.errors import ConfigError, WeightsError
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.weights import save
from leveret.weights.load import load_model
from leveret.weights.save import save_model


def test_a_tied_head_is_written_once(model: Decoder, tmp_path: Path) -> None:
    tied = Decoder(dataclasses.replace(model.config, tie_word_embeddings=True))
    init_weights(tied, seed=0)
    save_model(tied, tmp_path, shard_bytes=20_000)
    names = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert "lm_head.weight" not in names and "model.embed_tokens.weight" in names
    assert torch.equal(load_model(tmp_path).lm_head.weight, tied.lm_head.weight)


def test_weights_that_do_not_fit_are_told_by_name(model: Decoder, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as refused:
            save_model(model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.filename == str(tmp_path / "model.safetensors")


def test_shards_keep_to_their_size_and_the_index_adds_up(model: Decoder, sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    largest = max(tensor.nbytes for tensor in model.state_dict().values())
    for shard in sharded.glob("*.safetensors"):
        assert shard.stat().st_size < max(20_000, largest) + 4000  # and a header


def test_token_ids_and_extra_keys_go_into_the_generation_config(model: Decoder, tmp_path: Path) -> None:
    save_model(model, tmp_path, generation={"temperature": 0.7, "do_sample": True})
    values = json.loads((tmp_path / "generation_config.json").read_text())
    assert values == {"bos_token_id": 1, "eos_token_id": [2, 3], "temperature": 0.7, "do_sample": True}


def test_saving_in_bfloat16_says_so(model: Decoder, tmp_path: Path) -> None:
    save_model(model.to(torch.bfloat16), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(tmp_path).lm_head.weight.dtype == torch.bfloat16


def test_old_weights_go_and_other_files_stay(model: Decoder, sharded: Path) -> None:
    (sharded / "tokenizer.json").write_text("{}")
    save_model(model, sharded)
    assert sorted(file.name for file in sharded.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    load_model(sharded)


def test_weights_may_be_read_by_whom_new_files_may_be(model: Decoder, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save_model(model, tmp_path / "model", shard_bytes=20_000)
    finally:
        os.umask(old)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {0o640}, modes


@pytest.mark.parametrize("fail_at", range(1, 12))
def test_a_crash_at_any_write_leaves_the_old_model_the_new_one_or_none(
    fail_at: int, model: Decoder, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    init_weights(model, seed=1)
    calls = {"left": fail_at}

    def failing(original):
        def call(*arguments, **options):
            calls["left"] -= 1
            if calls["left"] == 0:
                raise OSError("disk full")
            return original(*arguments, **options)

        return call

    monkeypatch.setattr(save, "save_file", failing(save.save_file))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    crashed = True
    try:
        save_model(model, sharded, shard_bytes=40_000)
        crashed = False
    except OSError:
        pass
    monkeypatch.undo()
    try:
        found = load_model(sharded).state_dict()
    except WeightsError:
        assert crashed
    else:
        wanted = old if crashed else model.state_dict()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    save_model(model, sharded)  # and the directory can be used again
    assert torch.equal(load_model(sharded).lm_head.weight, model.lm_head.weight)
    assert not list(sharded.glob(".*"))


def test_a_config_the_family_cannot_express_is_not_written(model: Decoder, tmp_path: Path) -> None:
    model.config = dataclasses.replace(model.config, family="llama", sliding_window=4)
    with pytest.raises(ConfigError, match="llama model cannot have sliding_window"):
        save_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
