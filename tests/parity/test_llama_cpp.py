"""llama.cpp as the oracle: it loads our GGUF files, reads text into the same ids, and goes on as we do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, trainers

from leveret.model.config import ModelConfig, MoeConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.init import init_weights
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import Split, train_byte_bpe
from leveret.weights.gguf import write_gguf
from leveret.weights.gguf_tokenizer import TEXTS, find_rule, sample_texts, tokenizer_keys
from leveret.weights.save import save_model

pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")
llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle llama-cpp-python is not installed")

TRAINED_ON = [
    "A hare runs, it's quick; the hares' field. (see 'self' and \"self\") don't   stop.\n\n",
    "野兔在田野里跑。今天早上七点半叫我起床，好吗？",
    "def hop(self, times=10):\n    return 'self'[0] * times  # 注释\n",
] * 8
PROMPT = "The hare 野兔 'self' 12 🐇"
SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 64},
    "llama": {"rope": RopeConfig(kind="linear", factor=2.0)},
    "llama3": {"rope": RopeConfig(kind="llama3", factor=8.0, original_max_position_embeddings=32, theta=500.0)},
    "yarn": {"rope": RopeConfig(kind="yarn", factor=4.0, original_max_position_embeddings=32)},
    "aquila": {"tie_word_embeddings": True},
    "mixtral": {"moe": MoeConfig(num_experts=4, experts_per_token=2)},
    "lingowhale": {"num_key_value_heads": 4, "head_dim": 32},
}


def trained(split: Split) -> Tokenizer:
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    return train_byte_bpe(
        TRAINED_ON, vocab_size=420, split=split, special_tokens=special, bos_token="<s>", eos_token="</s>"
    )


def built(folder: Path, tokenizer: Tokenizer, name: str) -> tuple[Decoder, Path]:
    """A tiny model of this shape, and its f32 file."""
    family = name if name not in ("llama3", "yarn") else "llama"
    settings: dict[str, Any] = {
        "family": family, "vocab_size": tokenizer.vocab_size + 4, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "initializer_range": 0.2, "norm_scales_in_float32": family_for(family).norm_scales_in_float32,
    }  # fmt: skip
    config = ModelConfig(**(settings | SHAPES[name]))
    model = Decoder(config).eval()
    init_weights(model, 0)
    save_model(model, folder)
    tokenizer.save(folder)
    write_gguf(folder, folder / "m.gguf", "f32", tokenizer_keys(tokenizer, config), name="tiny")
    return model, folder / "m.gguf"


def opened(file: Path, **options: Any) -> Any:
    """A loaded file, with keys and values kept in float32 (type 0), as ours are; else they are rounded."""
    return llama_cpp.Llama(
        str(file),
        n_ctx=64,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        logits_all=True,
        type_k=0,
        type_v=0,
        **options,
    )


@pytest.mark.parametrize("split", ["gpt2", "leveret"])
def test_llama_cpp_reads_every_text_into_our_ids(split: Split, tmp_path: Path) -> None:
    tokenizer = trained(split)
    _, file = built(tmp_path, tokenizer, "llama")
    theirs = opened(file, vocab_only=True)
    known = set(find_rule(tokenizer).exceptions)
    for text in [*TEXTS, *list(sample_texts(tokenizer))[::20]]:
        if text not in known and "\0" not in text:
            assert theirs.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text), text
    text = "<s><|im_start|>user\n野兔<|im_end|>"
    assert theirs.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text, allow_special=True)
    assert theirs.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
    assert (theirs.token_bos(), theirs.token_eos()) == (tokenizer.bos_id, tokenizer.eos_id)


def sentencepiece_like() -> Tokenizer:
    """As Llama 2's tokenizer.json: a prefixed space, pieces of characters, bytes for the rest."""
    engine = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *byte_pieces], show_progress=False
    )
    words = [f"▁{word}" for text in TRAINED_ON for word in text.replace("\n", " ").split(" ") if word]
    engine.normalizer, normalizer = None, engine.normalizer
    engine.train_from_iterator(words, trainer)
    engine.normalizer = normalizer
    content = json.loads(engine.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    return Tokenizer(json.dumps(content), bos_token="<s>", eos_token="</s>")


def test_llama_cpp_reads_texts_into_the_ids_of_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    _, file = built(tmp_path, tokenizer, "llama")
    theirs = opened(file, vocab_only=True)
    for text in [*TEXTS, *list(sample_texts(tokenizer))[::20]]:
        if text and "\0" not in text:
            assert theirs.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text), text


@pytest.mark.parametrize("name", list(SHAPES))
def test_llama_cpp_goes_on_greedily_as_we_do(name: str, tmp_path: Path) -> None:
    tokenizer = trained("leveret")
    model, file = built(tmp_path, tokenizer, name)
    theirs = opened(file)
    ids = tokenizer.encode(PROMPT)
    for _ in range(24):
        with torch.inference_mode():
            ours = model(torch.tensor([ids]))[0, -1]
        theirs.reset()
        theirs.eval(ids)
        logits = np.asarray(theirs.scores[len(ids) - 1][: len(ours)])
        assert np.abs(logits - ours.float().numpy()).max() < 1e-3 * np.abs(logits).max(), len(ids)
        assert int(logits.argmax()) == int(ours.argmax())
        ids.append(int(ours.argmax()))
