"""Training a tokenizer: what is learned, where the special tokens go, and that nothing is left to chance."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from leveret.errors import TokenizerError
from leveret.tokenizer.train import LEVERET_WORDS, train_byte_bpe

TEXTS = [
    "The quick brown hare jumps over the lazy tortoise. It's 2024, isn't it?\n\n    def run(x):\n        return x\n",
    "野兔跑得很快，乌龟走得很慢。给张伟打电话，号码是13800138000。",
    "Call 张伟 at 9:30 ☎️ 👩‍👩‍👧 and say “hello”!",
] * 20


def words(text: str) -> list[str]:
    split = pre_tokenizers.Split(tokenizers.Regex(LEVERET_WORDS), behavior="isolated")
    return [word for word, _ in split.pre_tokenize_str(text)]


def test_ids_equal_a_plain_trainer_with_the_same_settings() -> None:
    ours = train_byte_bpe(TEXTS, vocab_size=600, split="gpt2")
    plain = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    plain.train_from_iterator(TEXTS, vocab_size=600, min_frequency=2, show_progress=False)
    assert json.loads(ours.to_json())["model"]["vocab"] == plain.get_vocab()
    for text in TEXTS[:3]:
        assert ours.encode(text) == plain.encode(text).ids


def test_the_leveret_split_equals_a_plain_trainer_with_the_same_split() -> None:
    ours = train_byte_bpe(TEXTS, vocab_size=400)
    plain = tokenizers.Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LEVERET_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    )
    for text in TEXTS[:3]:
        assert ours.encode(text) == plain.encode(text).ids


def test_training_does_not_depend_on_chance_or_on_the_order_of_texts() -> None:
    first = train_byte_bpe(TEXTS, vocab_size=500, special_tokens=["<a>"])
    assert train_byte_bpe(iter(TEXTS), vocab_size=500, special_tokens=["<a>"]).to_json() == first.to_json()
    assert train_byte_bpe(reversed(TEXTS), vocab_size=500, special_tokens=["<a>"]).to_json() == first.to_json()


def test_special_tokens_follow_the_base_vocabulary_in_the_given_order() -> None:
    special = ["<|endoftext|>", "<round_start>", "<round_end>", "<api_0>"]
    tokenizer = train_byte_bpe(TEXTS, vocab_size=400, special_tokens=special, eos_token="<|endoftext|>")
    assert tokenizer.vocab_size == 400
    assert tokenizer.special_ids == {token: 396 + rank for rank, token in enumerate(special)}
    assert tokenizer.eos_id == 396


def test_a_han_character_and_a_digit_are_always_words_of_their_own() -> None:
    assert words("打给张伟 13号") == ["打", "给", "张", "伟", " ", "1", "3", "号"]
    assert words("カタカナと漢字々") == ["カタカナと", "漢", "字", "々"]


def test_words_keep_the_space_before_them_and_contractions_are_split() -> None:
    assert words("it's a 'small' hare") == ["it", "'s", " a", " '", "small", "'", " hare"]
    assert words("say('small')") == ["say", "('", "small", "')"]
    assert words("    return x\n\nnext") == ["   ", " return", " x", "\n\n", "next"]


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_the_split_loses_nothing(text: str) -> None:
    assert "".join(words(text)) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 256, "special_tokens": ["<a>"]}, "at least 257"),
        ({"vocab_size": 300, "special_tokens": ["<a>", "<a>"]}, "different"),
        ({"vocab_size": 300, "eos_token": "</s>"}, "not one of the special tokens"),
        ({"vocab_size": 300, "special_tokens": ["<a>", "a"]}, r"\['a'\] are tokens of the vocabulary already"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        train_byte_bpe(TEXTS, **arguments)  # type: ignore[arg-type]
