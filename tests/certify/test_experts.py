"""Experts that no text visits: a router that never chooses one must not hide that it is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leveret.certify.by_leveret import from_directory
from leveret.certify.experts import compare_experts
from leveret.certify.findings import Check
from leveret.certify.form import Form
from leveret.certify.thresholds import BOUNDS
from leveret.errors import CertificateError
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.moe import SparseMixture
from leveret.quantize.config import QuantizeConfig
from leveret.quantize.run import run as quantize
from leveret.tokenizer.files import Tokenizer
from leveret.weights.save import save_model

from .test_run import QUIET, certify, verdicts

UNVISITED = 4
Change = Callable[[SparseMixture], None]
MakeMixture = Callable[..., Path]


@pytest.fixture
def make(config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> MakeMixture:
    """Save a mixture whose last expert is never chosen, after `change(the last layer's experts)`."""

    def saved(name: str, change: Change | None = None, experts: int = 5, dtype: torch.dtype = torch.float32) -> Path:
        model = Decoder(replace(config, family="mixtral", moe=MoeConfig(num_experts=experts, experts_per_token=2)))
        init_weights(model, 0)
        direction = torch.randn(config.hidden_size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for layer in model.layers:  # two of the first four are positive, and the last is 0
                layer.mlp.gate.weight[:5] = torch.outer(torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0]), direction)[:experts]
            if change is not None:
                change(model.layers[-1].mlp)
        save_model(model.to(dtype), tmp_path / name)
        tokenizer.save(tmp_path / name)
        return tmp_path / name

    return saved


def lose(block: SparseMixture) -> None:
    block.experts[UNVISITED].down_proj.weight.zero_()


def confuse(block: SparseMixture) -> None:
    for part in ("gate_proj", "up_proj", "down_proj"):
        getattr(block.experts[UNVISITED], part).weight.copy_(getattr(block.experts[0], part).weight)


def one_check(first: Path, second: Path, bound: float) -> Check:
    (check,) = compare_experts(form(first), form(second), bound)
    return check


def form(path: Path) -> Form:
    return from_directory(str(path), path)


@pytest.mark.parametrize("change", [lose, confuse])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_expert_that_no_text_visits_fails(
    change: Change, dtype: torch.dtype, make: MakeMixture, tmp_path: Path
) -> None:
    with pytest.raises(CertificateError, match=f"layers.1.mlp.experts.{UNVISITED}"):
        certify(make("a"), make("b", change, dtype=dtype), output=tmp_path / "out")
    failed = {name for name, verdict in verdicts(tmp_path / "out").items() if verdict == "different"}
    assert failed - {"matrices"} == {"experts"}


@pytest.mark.parametrize("method", ["round-to-nearest", "gptq", "awq"])
def test_a_wrong_expert_is_told_from_a_quantized_one(
    method: str, make: MakeMixture, text: Path, tmp_path: Path
) -> None:
    whole, bound = make("a"), BOUNDS["int4"].expert_error
    settings = {} if method == "round-to-nearest" else {"calibration": [text], "calibration_row_tokens": 64}
    for name, path in (("q", whole), ("wrong", make("b", lose))):
        quantize(
            QuantizeConfig(model=str(path), output=tmp_path / name, group_size=32, method=method, **settings), QUIET
        )
    assert one_check(whole, tmp_path / "q", bound).verdict == "same"
    assert one_check(whole, tmp_path / "wrong", bound).verdict == "different"


def test_another_number_of_experts_differs(make: MakeMixture) -> None:
    check = one_check(make("a"), make("b", experts=4), 1.0)
    assert (check.verdict, check.measured) == ("different", "5 and 4 in a layer")


def test_a_model_without_experts_has_no_such_check(make_form: Callable[..., Path]) -> None:
    dense = form(make_form("a"))
    assert compare_experts(dense, dense, 1.0) == ()
