"""Tokenizers in the older files become tokenizer.json, and give the ids of those who wrote the formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leveret.convert.older_tokenizer import write_tokenizer_json
from leveret.errors import TokenizerError
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.gguf_tokenizer import TEXTS

TRAINED_ON = [
    "A hare runs, it's quick; the hares' field.",
    "野兔在田野里跑。今天早上",
    "def hop(self): return 'self'",
] * 8


def gpt2_files(folder: Path) -> Tokenizer:
    """As Aquila2's: vocabulary, merges, and special tokens at its end; the same tokenizer in our form."""
    tokenizer = train_byte_bpe(
        TRAINED_ON, vocab_size=320, split="gpt2", special_tokens=["[CLS]", "</s>"], bos_token="[CLS]", eos_token="</s>"
    )
    content = json.loads(tokenizer.to_json())
    folder.mkdir()
    special = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"] | special))
    lines = [
        "#version: 0.2 - Trained by `huggingface/tokenizers`",
        *(" ".join(pair) for pair in content["model"]["merges"]),
    ]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "[CLS]", "eos_token": {"content": "</s>"},
                "unk_token": "</s>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def test_gpt2s_files_give_the_same_ids(tmp_path: Path) -> None:
    tokenizer = gpt2_files(tmp_path / "m")
    assert write_tokenizer_json(tmp_path / "m") == "tokenizer.json was made of vocab.json and merges.txt"
    made = Tokenizer.load(tmp_path / "m")
    assert made.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert [made.decode(ids) for ids in made.encode_batch(TEXTS)] == list(TEXTS)
    assert made.encode("[CLS]a</s>", allow_special=True) == tokenizer.encode("[CLS]a</s>", allow_special=True)
    assert (made.bos_id, made.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert write_tokenizer_json(tmp_path / "m") is None  # it is there


def test_added_tokens_get_their_ids_or_are_refused(tmp_path: Path) -> None:
    gpt2_files(tmp_path / "m")
    (tmp_path / "m/added_tokens.json").write_text(json.dumps({"<|end|>": 320, "<|start|>": 321}))
    (tmp_path / "m/special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<|end|>"]}))
    write_tokenizer_json(tmp_path / "m")
    made = Tokenizer.load(tmp_path / "m")
    assert made.ids["<|end|>"] == 320 and made.ids["<|start|>"] == 321
    assert made.is_special(320) and not made.is_special(321)
    (tmp_path / "m/tokenizer.json").unlink()
    (tmp_path / "m/added_tokens.json").write_text(json.dumps({"<|end|>": 330}))
    with pytest.raises(TokenizerError, match="should have id 330, but 320"):
        write_tokenizer_json(tmp_path / "m")
    (tmp_path / "m/added_tokens.json").write_text(json.dumps({"a": 7}))
    with pytest.raises(TokenizerError, match=r"'a' is id .* and 7 among the added"):
        write_tokenizer_json(tmp_path / "m")
    (tmp_path / "m/merges.txt").write_text("zz yy\n")
    with pytest.raises(TokenizerError, match="do not belong together"):
        write_tokenizer_json(tmp_path / "m")


def trained_model(folder: Path, **options: Any) -> Any:
    """A tokenizer.model, and sentencepiece's reader of it."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the oracle is sentencepiece")
    pytest.importorskip("google.protobuf", reason="sentencepiece files are read through protobuf")
    folder.mkdir(exist_ok=True)
    (folder / "text").write_text("\n".join(TRAINED_ON))
    given = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 380, "normalization_rule_name": "identity",
             "remove_extra_whitespaces": False, "hard_vocab_limit": False, "minloglevel": 2,
             "split_digits": True} | options  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), **given
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_model_gives_sentencepieces_ids(prefix: bool, tmp_path: Path) -> None:
    oracle = trained_model(tmp_path / "m", add_dummy_prefix=prefix)
    assert write_tokenizer_json(tmp_path / "m") == "tokenizer.json was made of tokenizer.model"
    made = Tokenizer.load(tmp_path / "m")
    for text in (*TEXTS, "野兔", " two  spaces ", "x" * 50):
        assert made.encode(text) == oracle.encode(text), text
        assert made.decode(made.encode(text)) == text
    assert made.is_special(oracle.bos_id()) and made.ids["</s>"] == oracle.eos_id()


def test_llamas_class_begins_a_text_with_bos_unless_told_not_to(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    oracle = trained_model(tmp_path / "m")
    for told, expected in (({}, [1]), ({"add_bos_token": False}, [])):
        settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (tmp_path / "m/tokenizer_config.json").write_text(json.dumps(settings | told))
        (tmp_path / "m/tokenizer.json").unlink(missing_ok=True)
        write_tokenizer_json(tmp_path / "m")
        fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "m/tokenizer.json"))
        assert fast.encode("野兔 runs") == expected + oracle.encode("野兔 runs")


def test_what_a_tokenizer_json_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    trained_model(tmp_path / "a", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    with pytest.raises(TokenizerError, match="into other ids"):
        write_tokenizer_json(tmp_path / "a")
    trained_model(tmp_path / "b", model_type="unigram", vocab_size=340)
    with pytest.raises(TokenizerError, match="another type than BPE"):
        write_tokenizer_json(tmp_path / "b")
    (tmp_path / "b/tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match="no sentencepiece model"):
        write_tokenizer_json(tmp_path / "b")
    assert not (tmp_path / "b/tokenizer.json").exists()
