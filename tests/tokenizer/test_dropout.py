"""BPE dropout: nothing dropped is the tokenizer, all dropped is characters, and a seed gives the same again."""

from __future__ import annotations

import json
from statistics import mean

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from leveret.errors import TokenizerError
from leveret.tokenizer.dropout import BpeDropout
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe

TEXT = "the tortoise walks slowly, it does not sleep: 野兔跑得很快 <stop> é 𠮷 1380"


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return train_byte_bpe([TEXT] * 5, vocab_size=400, special_tokens=["<stop>"])


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    engine.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<stop>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )  # fmt: skip
    engine.train_from_iterator([word for word in TEXT.split() for _ in range(5)], trainer)
    engine.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(),
         tokenizers.decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return Tokenizer(engine.to_str())


@pytest.fixture(params=["byte_level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("allow_special", [False, True])
def test_without_dropped_merges_it_is_the_tokenizer(tokenizer: Tokenizer, allow_special: bool) -> None:
    ids, offsets = BpeDropout(tokenizer, 0.0).reader("")(TEXT, allow_special, False)
    expected_ids, expected_offsets = tokenizer.encode_with_offsets(TEXT, allow_special=allow_special)
    assert ids == expected_ids
    if not tokenizer.strips_first_space:
        assert offsets == expected_offsets


def test_with_all_dropped_every_character_stands_alone(tokenizer: Tokenizer) -> None:
    ids, _ = BpeDropout(tokenizer, 1.0).reader("")("tortoise <stop>", True, False)
    assert [tokenizer.decode([index]).strip() for index in ids if index][-10:] == [*"tortoise", "", "<stop>"]


@given(text=st.text(st.sampled_from("the tors 野兔é𠮷")), seed=st.integers(0, 3).map(str))
def test_any_choice_of_merges_reads_back_as_the_text(byte_level: Tokenizer, text: str, seed: str) -> None:
    ids, offsets = BpeDropout(byte_level, 0.3).reader(seed)(text, False, False)
    assert byte_level.decode(ids) == text
    covered = {place for start, end in offsets for place in range(start, end)}
    assert covered == set(range(len(text)))
    assert offsets == sorted(offsets)


def test_a_seed_repeats_and_another_one_differs(tokenizer: Tokenizer) -> None:
    dropout = BpeDropout(tokenizer, 0.2)
    assert dropout.reader("1")(TEXT, True, False) == dropout.reader("1")(TEXT, True, False)
    assert dropout.reader("1")(TEXT, True, False) != dropout.reader("2")(TEXT, True, False)
    assert tokenizer.decode(dropout.reader("1")(TEXT, True, False)[0]) == tokenizer.decode(
        dropout.reader("2")(TEXT, True, False)[0]
    )


def test_texts_grow_as_with_the_dropout_of_the_tokenizers_library(tokenizer: Tokenizer) -> None:
    plain = json.loads(tokenizer.to_json())
    plain["model"]["dropout"] = 0.3
    theirs = tokenizers.Tokenizer.from_str(json.dumps(plain))
    theirs.encode_special_tokens = True
    dropout = BpeDropout(tokenizer, 0.3)
    ours = mean(len(dropout.reader(str(i))(TEXT, False, False)[0]) for i in range(300))
    assert ours == pytest.approx(mean(len(theirs.encode(TEXT).ids) for _ in range(300)), rel=0.05)


def test_the_tokenizer_itself_never_drops(byte_level: Tokenizer) -> None:
    before = byte_level.to_json()
    BpeDropout(byte_level, 1.0).reader("")(TEXT, False, False)
    assert byte_level.to_json() == before and json.loads(before)["model"]["dropout"] is None


def test_other_kinds_of_tokenizers_are_refused() -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(TokenizerError, match="type BPE"):
        BpeDropout(Tokenizer(words.to_str()), 0.1)
