"""Token rows are matched by the token; a token that only one model has keeps its row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from leveret.config import parse_config
from leveret.console import Console
from leveret.errors import ConfigError, ShapeMismatch
from leveret.merge import blocks
from leveret.merge.config import MergeConfig
from leveret.merge.run import run
from leveret.tokenizer.files import Tokenizer
from leveret.weights.load import load_model

MakeModel = Callable[..., Path]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS, TOKENS = 310, 276  # of the models and of their tokenizer


def merge(output: Path, *models: Path, **changes: Any) -> dict[str, torch.Tensor]:
    data = {"models": [str(model) for model in models], "output": output} | changes
    run(parse_config(MergeConfig, data, source="test"), Console(quiet=True))
    return load_file(output / "model.safetensors")


def notes(output: Path) -> str:
    return "\n".join(json.loads((output / "leveret-merge.json").read_text())["notes"])


def permute(folder: Path, seed: int) -> None:
    """Renumber a model's ordinary tokens at random, tokenizer and rows together."""
    held = load_file(folder / "model.safetensors")
    content = json.loads((folder / "tokenizer.json").read_text())
    count = len(content["model"]["vocab"])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    content["model"]["vocab"] = {token: int(order[index]) for token, index in content["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for name in (EMBEDDING, HEAD):
        rows = held[name].clone()
        rows[order] = held[name][:count]
        held[name] = rows
    save_file(held, folder / "model.safetensors")


@pytest.mark.parametrize("block", [64, 1 << 18])
def test_the_same_tokens_under_other_ids_are_put_in_order(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(blocks, "STREAMED", block)
    a, b = make_model("a", 0), make_model("b", 1)
    expected = merge(tmp_path / "plain", a, b, weights=[0.3, 0.7])
    permute(b, 5)
    out = merge(tmp_path / "out", a, b, weights=[0.3, 0.7])
    assert all(torch.equal(out[name], expected[name]) for name in expected)
    assert "under other ids" in notes(tmp_path / "out")


def test_different_vocabularies_are_refused_with_counts_and_examples(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = make_model("a", 0, added=("<x>",)), make_model("b", 1, added=("<api_0>", "<api_1>"))
    with pytest.raises(ConfigError, match=r"b has 2 tokens more \(<api_0>, <api_1>\) and lacks 1 \(<x>\)") as error:
        merge(tmp_path / "out", a, b)
    assert "vocabulary=first" in str(error.value) and "vocabulary=union" in str(error.value)


def test_first_keeps_the_first_s_tokens_and_lends_its_rows(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = make_model("a", 0, added=("<x>", "<y>")), make_model("b", 1, added=("<y>",))
    out = merge(tmp_path / "out", a, b, vocabulary="first", weights=[0.3, 0.7])
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    ids, theirs = Tokenizer.load(a).ids, Tokenizer.load(b).ids
    assert torch.equal(out[EMBEDDING][ids["<x>"]], first[EMBEDDING][ids["<x>"]])
    expected = 0.3 * first[HEAD][ids["<y>"]] + 0.7 * second[HEAD][theirs["<y>"]]
    torch.testing.assert_close(out[HEAD][ids["<y>"]], expected)
    assert "lacks 1 tokens of the result (<x>)" in notes(tmp_path / "out")


def test_a_base_without_the_functional_tokens_changes_nothing_for_them(make_model: MakeModel, tmp_path: Path) -> None:
    base, a = make_model("base", 0), make_model("a", 1, added=("<api_0>", "<api_1>"))
    b = make_model("b", 2, added=("<api_0>", "<api_1>"))
    with pytest.raises(ConfigError, match="base lacks 2"):
        merge(tmp_path / "out", a, b, base=str(base), method="ties")
    out = merge(tmp_path / "out", a, base=str(base), method="ties", vocabulary="first", density=0.1)
    row = Tokenizer.load(a).ids["<api_0>"]
    assert torch.equal(out[EMBEDDING][row], load_file(a / "model.safetensors")[EMBEDDING][row])


def test_union_adds_the_others_added_tokens_with_their_rows(make_model: MakeModel, tmp_path: Path) -> None:
    a = make_model("a", 0, vocab_size=TOKENS + 1, added=("<x>",))
    b = make_model("b", 1, added=("<api_0>", "<api_1>"))
    out = merge(tmp_path / "out", a, b, vocabulary="union", weights=[0.9, 0.1])
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert [tokenizer.ids[token] for token in ("<x>", "<api_0>", "<api_1>")] == [TOKENS, TOKENS + 1, TOKENS + 2]
    assert len(out[EMBEDDING]) == TOKENS + 3 == load_model(tmp_path / "out").config.vocab_size
    second, theirs = load_file(b / "model.safetensors"), Tokenizer.load(b).ids
    assert torch.equal(out[HEAD][TOKENS + 2], second[HEAD][theirs["<api_1>"]])
    assert tokenizer.encode("a hare<api_1>", allow_special=True)[-1] == TOKENS + 2
    assert tokenizer.encode("a hare runs") == Tokenizer.load(a).encode("a hare runs")


def test_transformers_reads_the_united_tokenizer_alike(make_model: MakeModel, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    a, b = make_model("a", 0, vocab_size=TOKENS + 1, added=("<x>",)), make_model("b", 1, added=("<api_0>",))
    merge(tmp_path / "out", a, b, vocabulary="union")
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "a hare<api_0> runs<x>"
    ours = Tokenizer.load(tmp_path / "out").encode(text, allow_special=True)
    assert peer(text, add_special_tokens=False)["input_ids"] == ours


def test_union_refuses_ordinary_tokens(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = make_model("a", 0), make_model("b", 1)
    content = json.loads((a / "tokenizer.json").read_text())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    del content["model"]["vocab"][last]
    content["model"]["merges"].pop()
    (a / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="1 tokens that the first model lacks are no added tokens"):
        merge(tmp_path / "out", a, b, vocabulary="union")
    assert len(merge(tmp_path / "out", a, b, vocabulary="first")[EMBEDDING]) == ROWS


def test_padding_rows_are_matched_by_number(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = make_model("a", 0), make_model("b", 1, vocab_size=320)
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    out = merge(tmp_path / "ab", a, b)
    assert out[EMBEDDING].shape == first[EMBEDDING].shape
    torch.testing.assert_close(out[EMBEDDING], (first[EMBEDDING] + second[EMBEDDING][:ROWS]) / 2)
    assert "10 rows without a token are left out" in notes(tmp_path / "ab")
    out = merge(tmp_path / "ba", b, a)
    assert torch.equal(out[HEAD][ROWS:], second[HEAD][ROWS:])


def test_without_tokenizers_only_equal_row_counts_are_merged(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = make_model("a", 0, tokenizer=None), make_model("b", 1, tokenizer=None)
    merge(tmp_path / "out", a, b)
    assert "has no tokenizer.json" in notes(tmp_path / "out")
    with pytest.raises(ConfigError, match="320 token rows"):
        merge(tmp_path / "out", a, make_model("c", 1, tokenizer=None, vocab_size=320))


def test_a_tokenizer_larger_than_the_embedding_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = make_model("a", 0), make_model("b", 1, vocab_size=TOKENS - 10)
    with pytest.raises(ShapeMismatch, match=r"10 tokens of .*b have ids beyond its 266 rows"):
        merge(tmp_path / "out", a, b)


def test_passthrough_refuses_models_that_number_tokens_differently(make_model: MakeModel, tmp_path: Path) -> None:
    a, b = make_model("a", 0), make_model("b", 1)
    permute(b, 5)
    with pytest.raises(ConfigError, match="number their tokens differently"):
        merge(tmp_path / "out", a, b, method="passthrough", layers=[[0, 1], [1, 2]])
