"""recipes/huozi-merge.yaml from end to end, on a tiny model: two fine-tunings, the mix, a last short one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from leveret.console import Console
from leveret.pipeline.config import RehearseConfig
from leveret.pipeline.rehearse import run
from leveret.weights.load import load_model

MakeModel = Callable[..., Path]
RECIPE = Path(__file__).parents[2] / "recipes/huozi-merge.yaml"


def test_the_recipe_mixes_two_checkpoints_and_their_origin_and_trains_on(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    origin = make_model("models/huozi-3.0", max_position_embeddings=512)
    (tmp_path / "data").mkdir()
    for name in ("knowledge", "instructions", "safety", "settle"):
        turns = [{"role": "user", "content": "a hare?"}, {"role": "assistant", "content": f"runs {name}, 野兔在跑。"}]
        lines = [json.dumps({"messages": turns}, ensure_ascii=False) + "\n"] * 8
        (tmp_path / f"data/{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    shrink = [f"{stage}.training.max_steps=2" for stage in ("knowledge", "instructions", "settle")]
    run(RehearseConfig(recipe=RECIPE, overrides=shrink, isolate=False), Console(quiet=True))
    output = tmp_path / "runs/huozi-merge-rehearsal"
    folders = [output / "knowledge/model", output / "instructions/model", origin]
    parts = [load_file(folder / "model.safetensors") for folder in folders]
    name = "model.layers.1.mlp.up_proj.weight"
    mean = sum(part[name].double() for part in parts) / 3
    mixed = load_file(output / "merge/model.safetensors")[name].double()
    assert not any(part[name].equal(load_file(output / "merge/model.safetensors")[name]) for part in parts)
    assert float((mixed - mean).abs().max()) <= float(mean.abs().max()) * 2.0**-8
    assert load_model(output / "settle/model").config.num_hidden_layers == 3
