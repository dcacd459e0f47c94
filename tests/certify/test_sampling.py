"""Settings of sampling that are lost on the way change every answer, and no logit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leveret.certify.sampling import compare_sampling
from leveret.engine.request import SamplingParams
from leveret.errors import CertificateError

from .test_run import certify


def form(sampling: SamplingParams | None) -> Any:
    return SimpleNamespace(sampling=sampling, path=Path("nowhere"))


def test_lost_settings_fail_and_are_named(make_form: Callable[..., Path]) -> None:
    first, second = make_form("a"), make_form("b")
    values = json.loads((first / "generation_config.json").read_text())
    warm = values | {"do_sample": True, "temperature": 0.3, "top_p": 0.8}
    (first / "generation_config.json").write_text(json.dumps(warm))
    with pytest.raises(CertificateError, match=r"sampling: temperature 0\.3, and the second 0\.0; top_p 0\.8"):
        certify(first, second)
    (second / "generation_config.json").write_text(json.dumps(warm))
    certify(first, second)


@pytest.mark.parametrize(("name", "value"), [("suppress_tokens", [40]), ("temperature", 0.3)])
def test_a_setting_that_only_other_programs_follow_is_compared_too(
    make_form: Callable[..., Path], name: str, value: object
) -> None:
    first, second = make_form("a"), make_form("b")
    values = json.loads((second / "generation_config.json").read_text())
    (second / "generation_config.json").write_text(json.dumps(values | {name: value, "transformers_version": "9"}))
    with pytest.raises(CertificateError, match=rf"sampling: {name} None, and the second"):
        certify(first, second)


def test_greedy_text_is_greedy_whatever_the_model_samples_by(make_form: Callable[..., Path]) -> None:
    pytest.importorskip("transformers", reason="the oracle")
    path = make_form("a")
    values = json.loads((path / "generation_config.json").read_text())
    settings = {"do_sample": True, "temperature": 0.3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    (path / "generation_config.json").write_text(json.dumps(values | settings))
    certify(path, f"transformers:{path}", greedy_tokens=16)


def test_a_form_that_cannot_say_it_is_not_judged() -> None:
    assert compare_sampling(form(SamplingParams()), form(None)).verdict == "not compared"
    ends = SamplingParams(stop_ids=(1,)), SamplingParams(stop_ids=(2,))
    assert compare_sampling(form(ends[0]), form(ends[1])).verdict == "same"
