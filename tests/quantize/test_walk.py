"""The walk through a decoder: what each Linear is given, and where the rows are after a layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from leveret.model.config import MoeConfig
from leveret.model.decoder import Decoder
from leveret.quantize.calibration import CalibrationRow
from leveret.quantize.source import PartwiseModel
from leveret.quantize.walk import States, halves, head_share
from leveret.weights.load import load_model
from leveret.weights.reader import WeightReader

MakeDirectory = Callable[..., Path]


def rows() -> list[CalibrationRow]:
    """One row with two documents, and a shorter one."""
    ids = torch.randint(300, (1, 24), generator=torch.Generator().manual_seed(0))
    return [
        CalibrationRow(
            ids=ids,
            positions=torch.cat([torch.arange(10), torch.arange(14)]).unsqueeze(0),
            document_ids=torch.tensor([[0] * 10 + [1] * 14]),
        ),
        CalibrationRow(
            ids=ids[:, :9], positions=torch.arange(9)[None], document_ids=torch.zeros(1, 9, dtype=torch.long)
        ),
    ]


def seen_by_hooks(model: Decoder) -> dict[str, list[torch.Tensor]]:
    """What every Linear is given when the whole model runs."""
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, given, name=name: seen.setdefault(name, []).append(given[0].flatten(0, -2))
            )
    with torch.no_grad():
        for row in rows():
            model(row.ids, positions=row.positions, document_ids=row.document_ids)
    return seen


@pytest.mark.parametrize("experts", [None, 4])
def test_every_linear_is_shown_what_it_is_given_in_the_whole_model(
    make_directory: MakeDirectory, experts: int | None
) -> None:
    moe = None if experts is None else MoeConfig(num_experts=experts)
    source = make_directory(family="mistral" if moe is None else "mixtral", moe=moe)
    wanted = seen_by_hooks(load_model(source))
    found: dict[str, list[torch.Tensor]] = {}
    with WeightReader(source) as reader, torch.no_grad():
        whole = PartwiseModel(source, reader)
        states = States(whole.model, rows())
        for number, layer in enumerate(whole.model.layers):
            whole.fill(f"layers.{number}", whole.dtype)
            for half in halves(layer, f"layers.{number}", states):
                for share in half.rounded:
                    for name in share.linears:
                        found[name] = [x.flatten(0, -2) for x in share.inputs()]
                half.go_on()
            whole.empty(f"layers.{number}")
        found["lm_head"] = [x.flatten(0, -2) for x in head_share(whole.model, states).inputs()]
    routers = {name for name in wanted if name.endswith(".gate")}
    assert set(found) == set(wanted) - routers and (len(routers) == 2) == (experts is not None)
    for name, inputs in found.items():
        torch.testing.assert_close(torch.cat(inputs), torch.cat(wanted[name]), rtol=1e-4, atol=1e-5, msg=name)


def test_only_the_layer_in_hand_is_in_memory(directory: Path) -> None:
    with WeightReader(directory) as reader:
        whole = PartwiseModel(directory, reader)
        assert all(parameter.is_meta for parameter in whole.model.layers.parameters())
        whole.fill("layers.1", whole.dtype)
        assert not any(parameter.is_meta for parameter in whole.model.layers[1].parameters())
        assert all(parameter.is_meta for parameter in whole.model.layers[0].parameters())
        whole.empty("layers.1")
        assert all(parameter.is_meta for parameter in whole.model.layers.parameters())
