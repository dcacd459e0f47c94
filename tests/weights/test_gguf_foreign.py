"""GGUF files as other programs write them: no key of ours in them, scores instead of merges, frequencies' divisors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, trainers

from leveret.errors import ConfigError, WeightsError
from leveret.model.config import ModelConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.gguf import write_gguf
from leveret.weights.gguf_file import GgufFile, open_gguf
from leveret.weights.gguf_metadata import config_from
from leveret.weights.gguf_read import GgufTensors, restore_companions
from leveret.weights.gguf_tokenizer import TEXTS, sample_texts, tokenizer_keys
from leveret.weights.save import save_model

gguf = pytest.importorskip("gguf", reason="the oracle of GGUF files is the package gguf")

TRAINED_ON = ["A hare runs, it's quick; the hares' field.", "野兔在田野里跑。", "def hop(self): return 'self'"] * 8


def sentencepiece_like(*, prefix: bool = True) -> Tokenizer:
    """As Llama 2's tokenizer.json."""
    engine = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=["<unk>", "<s>", "</s>", *byte_pieces], show_progress=False
    )
    words = [f"▁{word}" for text in TRAINED_ON for word in text.split(" ")]
    engine.train_from_iterator(words, trainer)
    space = [normalizers.Prepend("▁")] if prefix else []
    engine.normalizer = normalizers.Sequence([*space, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    engine.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    content = json.loads(engine.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    return Tokenizer(json.dumps(content), bos_token="<s>", eos_token="</s>")


def foreign(folder: Path, tokenizer: Tokenizer, kind: Any = "f32", **changes: Any) -> GgufFile:
    """A file of a tiny Llama without the keys that only leveret writes."""
    config = ModelConfig(
        family="llama", vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, **changes,
    )  # fmt: skip
    model = Decoder(config)
    init_weights(model, 0)
    save_model(model, folder)
    tokenizer.save(folder)
    write_gguf(folder, folder / "m.gguf", kind, tokenizer_keys(tokenizer, config), name="tiny")
    file = open_gguf(folder / "m.gguf")
    for key in [key for key in file.keys if "leveret" in key or "huggingface" in key]:
        del file.keys[key]
    return file


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_is_rebuilt_from_scores_to_the_same_ids(prefix: bool, tmp_path: Path) -> None:
    tokenizer = sentencepiece_like(prefix=prefix)
    assert restore_companions(foreign(tmp_path / "m", tokenizer), tmp_path / "out") == []
    back = Tokenizer.load(tmp_path / "out")
    texts = [*TEXTS, *list(sample_texts(tokenizer))[::7]]
    assert back.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert [back.decode(ids) for ids in back.encode_batch(texts)] == [
        tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)
    ]
    assert back.encode("<s>a</s>", allow_special=True) == tokenizer.encode("<s>a</s>", allow_special=True)
    assert (back.bos_id, back.eos_id, back.vocab_size) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size)


def test_transformers_reads_the_same_ids_out_of_the_file(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    tokenizer = sentencepiece_like()
    restore_companions(foreign(tmp_path / "m", tokenizer), tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m", gguf_file="m.gguf")
    ours = Tokenizer.load(tmp_path / "out")
    for text in ("A hare runs", "野兔在田野里跑。 x", "def hop(self): 🐇"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)


def test_a_byte_level_tokenizer_is_rebuilt_from_merges_and_the_name_of_its_rule(tmp_path: Path) -> None:
    tokenizer = train_byte_bpe(
        TRAINED_ON, vocab_size=300, special_tokens=["<s>", "</s>"], bos_token="<s>", eos_token="</s>", split="gpt2"
    )
    file = foreign(tmp_path / "m", tokenizer)
    restore_companions(file, tmp_path / "out")
    texts = [*TEXTS, *list(sample_texts(tokenizer))[::7]]
    assert Tokenizer.load(tmp_path / "out").encode_batch(texts) == tokenizer.encode_batch(texts)
    file.keys["tokenizer.ggml.pre"] = "never-heard-of"
    (notice,) = restore_companions(file, tmp_path / "other")
    assert "never-heard-of" in notice and not (tmp_path / "other").exists()


def test_the_rope_of_llama_3_is_found_by_its_divisors(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    rope = RopeConfig(kind="llama3", theta=500000.0, factor=8.0, original_max_position_embeddings=8192)
    file = foreign(tmp_path / "m", tokenizer, rope=rope, head_dim=64)
    assert GgufTensors(file).config.rope == rope
    with pytest.raises(ConfigError, match="not Llama 3's"):
        config_from(file.keys, [1.0] * 31 + [5.0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.dimension_count", 8), ("attention.causal", False), ("logit_scale", 2.0), ("rope.scale_linear", 4.0),
        ("rope.scaling.attn_factor", 2.0), ("attention.sliding_window", 64), ("attention.head_count_kv", [2]),
        ("never.heard_of", 1),
    ],
)  # fmt: skip
def test_a_key_that_changes_the_network_and_is_not_read_is_refused(key: str, value: object, tmp_path: Path) -> None:
    file = foreign(tmp_path / "m", sentencepiece_like())
    harmless = {"rope.scaling.finetuned": False, "attention.causal": True, "attention.sliding_window": 128}
    file.keys.update({f"llama.{name}": setting for name, setting in harmless.items()})
    assert GgufTensors(file).config.sliding_window is None
    file.keys[f"llama.{key}"] = value
    with pytest.raises(ConfigError, match=rf"llama\.{key} = "):
        GgufTensors(file)


@pytest.mark.parametrize("key", ["embedding_length", "context_length", "attention.head_count"])
def test_a_key_that_is_missing_is_named(key: str, tmp_path: Path) -> None:
    file = foreign(tmp_path / "m", sentencepiece_like())
    del file.keys[f"llama.{key}"]
    with pytest.raises(ConfigError, match=rf"lack llama\.{key}"):
        GgufTensors(file)


def test_an_adapter_in_a_file_is_no_model(tmp_path: Path) -> None:
    file = foreign(tmp_path / "m", sentencepiece_like())
    file.keys["general.type"] = "adapter"
    with pytest.raises(ConfigError, match="is an adapter and no model"):
        GgufTensors(file)


def test_a_file_without_tokens_says_so(tmp_path: Path) -> None:
    file = foreign(tmp_path / "m", sentencepiece_like())
    del file.keys["tokenizer.ggml.tokens"]
    (notice,) = restore_companions(file, tmp_path / "out")
    assert "cannot be rebuilt" in notice
    del file.keys["llama.vocab_size"]
    with pytest.raises(ConfigError, match=r"neither llama\.vocab_size nor tokens"):
        GgufTensors(file)


def test_a_factor_without_a_kind_is_linear(tmp_path: Path) -> None:
    file = foreign(tmp_path / "m", sentencepiece_like())
    file.keys["llama.rope.scaling.factor"] = 4.0
    assert GgufTensors(file).config.rope == RopeConfig(kind="linear", factor=4.0)


def test_a_type_that_cannot_be_decoded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = foreign(tmp_path / "m", sentencepiece_like())

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    with pytest.raises(WeightsError, match=r"token_embd\.weight .* is stored as F32, which cannot be decoded"):
        next(GgufTensors(file).blocks("embed_tokens.weight"))
    assert torch.float32 == GgufTensors(file).dtypes["norm.weight"]
