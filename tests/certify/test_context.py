"""How long the texts may be: a form that is meant for fewer tokens answers short texts alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leveret.certify.context import compare_context
from leveret.errors import CertificateError
from leveret.model.config import ModelConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.meta import shapes_only

from .test_run import certify


def folder(config: ModelConfig, **changes: Any) -> Any:
    changed = replace(config, **changes)
    with shapes_only():
        model = Decoder(changed)
    return SimpleNamespace(
        context_tokens=changed.max_position_embeddings, reader="leveret", path=Path("m"), model=model
    )


def file(context_tokens: int, reader: str = "leveret") -> Any:
    return SimpleNamespace(context_tokens=context_tokens, reader=reader, path=Path("m.gguf"), model=None)


def test_a_shortened_context_fails(make_form: Callable[..., Path]) -> None:
    path = make_form("b")
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | {"max_position_embeddings": 512}))
    with pytest.raises(CertificateError, match=r"context differ\n  context: 1,024 tokens, and the second 512"):
        certify(make_form("a"), path)


def test_a_file_says_what_llama_cpp_computes_rightly(config: ModelConfig) -> None:
    window = folder(config, sliding_window=64)
    stretched = folder(config, rope=RopeConfig(kind="linear", factor=2.0))
    for form, told, verdict in [
        (folder(config), 1024, "same"),
        (folder(config), 512, "different"),
        (window, 64, "same"),
        (window, 512, "different"),
        (stretched, 2048, "same"),
    ]:
        assert compare_context(form, file(told)).verdict == verdict
        assert compare_context(file(told), form).verdict == verdict


def test_what_llama_cpp_is_set_up_for_at_most_is_what_is_compared(config: ModelConfig) -> None:
    long = folder(config, max_position_embeddings=131072)
    check = compare_context(long, file(2048, "llama.cpp"))
    assert (check.verdict, check.measured) == ("same", "both 2,048 tokens or more")
    assert compare_context(long, file(1024, "llama.cpp")).verdict == "different"
    assert compare_context(long, file(2048)).verdict == "different"


def test_a_folder_that_another_program_reads_does_not_say_what_a_file_of_it_would(config: ModelConfig) -> None:
    theirs = SimpleNamespace(context_tokens=1024, reader="transformers", path=Path("m"), model=object())
    assert compare_context(theirs, file(64)).verdict == "reported"
    assert compare_context(folder(config), theirs).verdict == "same"
