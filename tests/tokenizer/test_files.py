"""Tokenizer files: the same ids as transformers, special tokens only on request, exact bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, trainers

from leveret.errors import TokenizerError
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe

TEXTS = ["hello world, it's a small hare\n", "你好，世界。野兔跑得很快", "emoji 👩‍👩‍👧 and 漢字"] * 10
SPECIAL = ["<|endoftext|>", "<round_start>", "<round_end>", "[好 x]"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_byte_bpe(
        TEXTS, vocab_size=330, special_tokens=SPECIAL, eos_token=SPECIAL[0], bos_token=SPECIAL[0], pad_token=SPECIAL[0]
    )


def sentencepiece_like() -> Tokenizer:
    """A tokenizer.json of the Llama 2 and Mistral kind: ▁ for a space, one put before the text, byte fallback."""
    engine = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special + pieces, show_progress=False)
    engine.train_from_iterator(["hello world small hare"] * 5, trainer)
    content = json.loads(engine.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    return Tokenizer(json.dumps(content), bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    "config", [None, {"model_type": "mistral"}, {"model_type": "llama"}, {"model_type": "mixtral"}]
)
def test_autotokenizer_reads_the_saved_files_to_the_same_ids(
    tokenizer: Tokenizer, tmp_path: Path, config: dict[str, str] | None
) -> None:
    tokenizer.save(tmp_path)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "<round_start>hello 世界 👩‍👩‍👧<round_end>\n[好 x]x"
    assert theirs(text).input_ids == tokenizer.encode(text, allow_special=True)
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (tokenizer.eos_id,) * 3
    assert sorted(theirs.all_special_ids) == sorted(tokenizer.special_ids.values())


def test_loading_what_was_saved_gives_an_equal_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.special_ids == tokenizer.special_ids
    assert again.chat_template == "{{ messages }}"


def test_special_token_text_is_ordinary_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    text = "hi<round_end><|endoftext|>[好 x]"
    ids = tokenizer.encode(text)
    assert not any(tokenizer.is_special(index) for index in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text]) == [ids]
    allowed = tokenizer.encode(text, allow_special=True)
    assert [index for index in allowed if tokenizer.is_special(index)] == [
        tokenizer.id_of("<round_end>"),
        tokenizer.eos_id,
        tokenizer.id_of("[好 x]"),
    ]
    assert tokenizer.decode(allowed) == text
    assert tokenizer.decode(allowed, skip_special=True) == "hi"


def test_bos_and_eos_are_added_only_by_name(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("hello")
    assert tokenizer.encode("hello", add_bos=True, add_eos=True) == [tokenizer.bos_id, *plain, tokenizer.eos_id]
    assert tokenizer.encode_batch(["hello"], add_eos=True) == [[*plain, tokenizer.eos_id]]
    with pytest.raises(TokenizerError, match="no bos_token"):
        train_byte_bpe(TEXTS, vocab_size=300).encode("x", add_bos=True)


@given(st.text())
@settings(max_examples=150, deadline=None)
def test_token_bytes_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes(index) for index in ids) == text.encode()
    assert tokenizer.decode(ids) == text


@given(st.lists(st.integers(0, 329), max_size=12))
@settings(max_examples=200, deadline=None)
def test_decoding_any_ids_equals_the_tokenizers_library(tokenizer: Tokenizer, ids: list[int]) -> None:
    ids = [index for index in ids if index < tokenizer.vocab_size and not tokenizer.is_special(index)]
    engine = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert tokenizer.decode(ids) == engine.decode(ids)


def test_a_sentencepiece_tokenizer_decodes_as_the_tokenizers_library_does() -> None:
    tokenizer = sentencepiece_like()
    engine = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    for text in ("hello world", "small 世界 hare", "", "  two"):
        ids = tokenizer.encode(text)
        assert ids == engine.encode(text).ids
        assert tokenizer.decode(ids) == engine.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.token_bytes(tokenizer.id_of("<0xE4>")) == b"\xe4"
    assert sum(len(tokenizer.token_bytes(i)) for i in tokenizer.encode("世界 hare")) == len(" 世界 hare".encode())


def composing() -> Tokenizer:
    """A byte-level tokenizer that makes texts shorter, as Qwen's does, with a token that eats white space."""
    content = json.loads(train_byte_bpe(TEXTS, vocab_size=330, special_tokens=SPECIAL).to_json())
    content["normalizer"] = {"type": "NFC"}
    content["added_tokens"][0] |= {"lstrip": True, "rstrip": True}
    return Tokenizer(json.dumps(content))


BOUNDED = [train_byte_bpe(TEXTS, vocab_size=330, special_tokens=SPECIAL), sentencepiece_like(), composing()]
PIECES = [
    "hello ",
    "世界",
    "   ",
    "\n",
    "\u1112\u1161\u11ab",
    "e\u0301",
    "▁▁",
    "<|endoftext|>",
    "[好 x]",
    "<0x0A>",
    "👩‍👩‍👧",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_text_has_fewer_ids_than_its_length_tells(pieces: list[str], allow_special: bool) -> None:
    text = "".join(pieces)
    for tokenizer in BOUNDED:
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, allow_special=allow_special))


def test_the_length_of_a_long_text_tells_that_it_has_many_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.fewest_tokens("hello " * 10_000) > 2_000
    assert sentencepiece_like().fewest_tokens("hello " * 10_000) > 2_000
    whole = json.loads(sentencepiece_like().to_json())
    whole["model"]["byte_fallback"] = False  # now one <unk> stands for any number of foreign characters
    assert Tokenizer(json.dumps(whole)).fewest_tokens("世" * 10_000) == 0


def test_added_special_tokens_get_the_next_ids(tokenizer: Tokenizer) -> None:
    copy = Tokenizer(tokenizer.to_json(), eos_token=SPECIAL[0])
    before, size = copy.fingerprint, copy.vocab_size
    assert copy.add_special_tokens(["<api_0>", "<round_end>", "<api_1>"]) == [size, copy.id_of("<round_end>"), size + 1]
    assert copy.vocab_size == size + 2
    assert copy.fingerprint != before
    assert copy.token_bytes(size) == b"<api_0>"
    assert copy.encode("<api_0>", allow_special=True) == [size]
    assert len(copy.encode("<api_0>")) > 1


def test_an_id_without_a_token_is_visible_in_text_and_an_error_in_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([5000]) == "\ufffd"
    with pytest.raises(TokenizerError, match="no token 5000"):
        tokenizer.token_bytes(5000)


def test_an_unknown_token_gets_a_suggestion(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="did you mean '<round_end>'"):
        tokenizer.id_of("<round_ends>")


def test_unusable_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="leveret tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(TokenizerError, match="leveret convert"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_published_forms_of_tokenizer_config_are_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    config = {
        "eos_token": {"content": "<round_end>", "__type": "AddedToken"},
        "chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    again = Tokenizer.load(tmp_path)
    assert again.eos_id == tokenizer.id_of("<round_end>")
    assert again.chat_template == "A"
