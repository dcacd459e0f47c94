"""A model with an adapter on it that shares its weights with the model underneath."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leveret.model.decoder import Decoder
from leveret.model.lora import LoraSettings
from leveret.model.lora_targets import add_lora
from leveret.model.token_rows import train_rows
from leveret.weights.adapted import adapted
from leveret.weights.adapter import save_adapter
from leveret.weights.fingerprint import fingerprint_of
from leveret.weights.load import load_model

from .test_adapter import disturb, make_adapter, make_base

IDS = torch.tensor([[3, 5, 7, 11, 2]])


def with_rows(base: Path, folder: Path) -> None:
    model = load_model(base)
    add_lora(model, LoraSettings(rank=4, alpha=8), ["q_proj"], seed=0)
    train_rows(model, [3, 5])
    disturb(model)
    save_adapter(model, folder, base=str(base), fingerprint=fingerprint_of(base))


def bytes_of(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["lora", "rows", "whole"])
def test_it_answers_as_the_adapter_loaded_alone_and_the_model_underneath_stays(
    tmp_path: Path, kind: str, tied: bool
) -> None:
    base, folder = make_base(tmp_path / "base", tie_word_embeddings=tied), tmp_path / "adapter"
    if kind == "rows":
        with_rows(base, folder)
    else:
        make_adapter(base, folder, save=("model.embed_tokens", "lm_head") if kind == "whole" else ())
    model = load_model(base)
    before = bytes_of(model)
    other, again = adapted(model, folder), adapted(model, folder)
    alone = load_model(base, adapter=folder)
    assert torch.equal(other(IDS), alone(IDS)) and torch.equal(again(IDS), alone(IDS))
    assert not torch.equal(other(IDS), model(IDS))
    assert bytes_of(model).keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in bytes_of(model).items())


def test_only_what_the_adapter_brings_takes_memory(tmp_path: Path) -> None:
    base, folder = make_base(tmp_path / "base"), tmp_path / "adapter"
    make_adapter(base, folder)
    model = load_model(base)
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    own = {name for name, parameter in adapted(model, folder).named_parameters() if parameter.data_ptr() not in shared}
    assert own and all("lora_" in name for name in own)
