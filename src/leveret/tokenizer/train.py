"""Train a byte-level BPE tokenizer on a stream of texts.

Byte pair encoding (Sennrich et al. 2016, arXiv 1508.07909) starts from the 256 bytes, so that any text whatever can be
encoded, and joins the most frequent neighbouring pair again and again until the vocabulary is full. Pairs are only
joined inside a *word*, so what counts as a word decides what the vocabulary can hold:

* `gpt2`: the rule of GPT-2 and Aquila. A run of Chinese characters is one word, as they are all letters.
* `leveret`: every Han character is a word of its own, and every digit; Latin and other words keep their leading space
  or bracket, like GPT-4's. A Chinese name copied from a request is then always the same tokens wherever it stands,
  which is what a small model that copies arguments needs; numbers likewise. The price is longer Chinese sequences
  (about one token a character); `gpt2` is the better choice for a large vocabulary trained on much Chinese text.

Ids: 0-255 the bytes, then the merges, then the special tokens in the given order. Training is deterministic: the same
texts give the same file, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from leveret.errors import TokenizerError
from leveret.tokenizer.files import Tokenizer

Split = Literal["gpt2", "leveret"]

LEVERET_WORDS = "|".join(
    (
        r"(?<=\p{L})'(?i:s|t|d|m|ll|ve|re)(?!\p{L})",  # it's: only after a letter, so that 'small' keeps its s
        r"\p{Han}",
        r"\p{N}",
        r"[^\r\n\p{L}\p{N}]?(?:(?!\p{Han})[\p{L}\p{M}])+",  # a word with the space, bracket or quote before it
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation and emoji, with the line end after them
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # indentation but for its last space, which belongs to the word
        r"\s+",
    )
)
"""The words of the `leveret` split, first alternative that fits; together they cover every character."""


def train_byte_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    split: Split = "leveret",
    min_frequency: int = 2,
    bos_token: str | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
    chat_template: str | None = None,
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` ids, the special tokens included.

    A pair seen fewer than `min_frequency` times is not joined, so a small corpus gives a smaller vocabulary.
    `bos_token`, `eos_token` and `pad_token` must be among `special_tokens`.
    """
    _check(vocab_size, special_tokens, {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token})
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = _pre_tokenizer(split)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special_tokens),
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    if taken := [token for token in special_tokens if engine.token_to_id(token) is not None]:
        raise TokenizerError(
            f"the special tokens {taken} are tokens of the vocabulary already, so ordinary text would become special",
            hint="choose longer ones, such as <|name|>",
        )
    tokenizer = Tokenizer(engine.to_str())
    tokenizer.add_special_tokens(special_tokens)
    return Tokenizer(
        tokenizer.to_json(),
        bos_token=bos_token,
        eos_token=eos_token,
        pad_token=pad_token,
        chat_template=chat_template,
    )


def _pre_tokenizer(split: Split) -> pre_tokenizers.PreTokenizer:
    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = pre_tokenizers.Split(tokenizers.Regex(LEVERET_WORDS), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _check(vocab_size: int, special_tokens: Sequence[str], roles: dict[str, str | None]) -> None:
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} is too small: 256 bytes and {len(special_tokens)} special tokens "
            f"need at least {smallest}"
        )
    if len(set(special_tokens)) != len(special_tokens) or "" in special_tokens:
        raise TokenizerError("special tokens must be different from each other and not empty")
    for role, token in roles.items():
        if token is not None and token not in special_tokens:
            raise TokenizerError(f"the {role} {token!r} is not one of the special tokens {list(special_tokens)}")
