"""A tokenizer as a GGUF file says it, and the name under which llama.cpp cuts text as this tokenizer does.

A GGUF file holds the vocabulary and the merges, but not the rule that cuts text into words: only the *name* of one of
the rules built into llama.cpp (`tokenizer.ggml.pre`). Other converters look the name up by a hash of the tokenizer, so
a tokenizer that one trained oneself is refused, or silently gets a rule that is not its own. Here the name is found by
trial: every rule of `RULES` is put in the place of the tokenizer's own, and is taken only if all ids stay equal over

* texts of the usual kinds (English, Chinese, code, emoji, many scripts, all sorts of spaces),
* thousands of random chains of the vocabulary's own tokens, which put its merges side by side in every way.

Only around combining marks may a rule differ, and then the exporter says so (`FoundRule.exceptions`).

A rule may cut elsewhere and still be equal: the `leveret` split makes a word of each Chinese character, the rule
`ufakzeka` does not, but as no merge ever joined two such words, no merge can join them there.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from leveret.errors import TokenizerError
from leveret.model.config import ModelConfig
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.token_bytes import notation_of
from leveret.weights.gguf_sentencepiece import SPACE, joined, piece_types, scores_of

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("gpt-2", (_GPT2,)),
    ("starcoder", (r"\p{N}", _GPT2)),
    ("qwen2", (rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",)),
    ("smaug-bpe", (rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",)),
    ("ufakzeka", (rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",)),
    ("qwen35", (
        rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )),
)  # fmt: skip
"""llama.cpp's names and their patterns, applied one after the other to what the last has left; the older come first."""

SMAUG_WITH_WHOLE_WORDS = "llama-bpe"
"""The name of `smaug-bpe`'s rule where a word that is a token is taken whole (`ignore_merges`)."""

TEXTS = (
    "It's the hare's field; they'll run, won't they? I'm 'sure' of 'tis and 'dusk'. DON'T! O'Neil said “she’d”.",
    "今天天气怎么样？野兔在田野里跑了 3 圈，用时12分30秒。  中文前有两个空格。「引号」……——。ABC公司,很好",
    "def hop(times: int = 10) -> str:\n    '''Return 's'.'''\n\treturn f\"{times!r}\" * 2  # 注释 1\r\n",
    "\n\n    x[0]['self'] += 1e-3\n",
    "🐇🐰👩‍👩‍👧‍👦 ok👍🏽!! 😀😀 1️⃣ ©™ ½ ² Ⅷ ١٢٣ １２３",
    "   three   spaces \t tabs\t\t\n  \n \r\n end  ", "\u3000全角空格\u00a0nbsp\u2003em\u200bzero\ufeff",
    "café naïve e\u0301te\u0301 ﬁ ǅ ß İi привет мир שלום عَلَيْكُمْ नमस्ते ไทยคำ 한국어 ひらがなカタカナ 𠮷野家 𝒳",
    "a,b;c. (x) [y] {z} <p>q</p> ||&& !== ... --- ___ ``` $5 50% #1 @me a_b C++ 3.14 1,000 2026-01-31",
)  # fmt: skip
"""What every rule is tried on, beside the chains."""

CHAINS = 3000
"""Random chains of tokens that a rule is tried on."""

_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


@dataclass(frozen=True, kw_only=True)
class FoundRule:
    """A rule of llama.cpp, and where it is not this tokenizer's."""

    name: str
    """For the key `tokenizer.ggml.pre`."""
    tried: int
    """Texts that both have read."""
    exceptions: tuple[str, ...]
    """Those with other ids; each has a combining mark in it."""

    def notice(self) -> str | None:
        """A sentence about the exceptions, if there are any."""
        if not self.exceptions:
            return None
        return (
            f"punctuation right after a combining mark (of Hindi, Thai, Arabic; the selector in some emoji) may get "
            f"other ids in llama.cpp: {len(self.exceptions)} of {self.tried:,} random texts, all others are equal"
        )


@dataclass(frozen=True, kw_only=True)
class TokenizerKeys:
    """The keys `tokenizer.*` of a file."""

    rule: FoundRule
    """How llama.cpp cuts text into words."""
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    ids: dict[str, int]
    """`bos`, `eos`, `eot` (ends a reply where that is another token), `pad`: those that exist."""
    add_bos: bool
    chat_template: str | None
    """Without `{% generation %}`, which llama.cpp's Jinja does not know."""
    scores: tuple[float, ...] = ()
    """Of a sentencepiece tokenizer, which has no merges (gguf_sentencepiece.py)."""
    space_prefix: bool = False
    """Sentencepiece: a text begins with a space that is not in it."""
    tokenizer_json: str
    """Travels whole in the standard key `tokenizer.huggingface.json`."""

    def write(self, writer: Any) -> None:
        """Add the keys to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model("llama" if self.scores else "gpt2")
        writer.add_tokenizer_pre(self.rule.name)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        if self.scores:
            writer.add_token_scores(list(self.scores))
            writer.add_add_space_prefix(self.space_prefix)
        else:
            writer.add_token_merges(list(self.merges))
        add = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "eot": writer.add_eot_token_id,
               "pad": writer.add_pad_token_id}  # fmt: skip
        for role, index in self.ids.items():
            add[role](index)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(False)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)
        writer.add_string("tokenizer.huggingface.json", self.tokenizer_json)


def tokenizer_keys(
    tokenizer: Tokenizer, config: ModelConfig, *, stop_ids: tuple[int, ...] = (), add_bos: bool = False
) -> TokenizerKeys:
    """The keys of a byte-level BPE tokenizer. TokenizerError if it is another kind, or no rule gives its ids.

    stop_ids: tokens that end a reply (`ChatTemplate.stop_ids`).
    add_bos: whether a text gets a BOS when it is no chat.
    """
    content = json.loads(tokenizer.to_json())
    if (kind := content["model"].get("type")) != "BPE":
        raise TokenizerError(f"a tokenizer of type {kind} is not written to GGUF here, only BPE",
                             hint="llama.cpp's convert_hf_to_gguf.py may know it")  # fmt: skip
    pieces = notation_of(content) == "sentencepiece"
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(f"the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size} rows",
                             hint="do the tokenizer and the model belong together?")  # fmt: skip
    tokens, types = vocabulary_of(tokenizer, content, config.vocab_size)
    eos = tokenizer.eos_id if tokenizer.eos_id is not None else next(iter(config.eos_token_ids), None)
    ends = [index for index in (*stop_ids, *config.eos_token_ids) if index != eos]
    ids = {"bos": tokenizer.bos_id, "eos": eos, "eot": ends[0] if ends else None, "pad": tokenizer.pad_id}
    return TokenizerKeys(
        rule=_pieces_rule(tokenizer, content) if pieces else find_rule(tokenizer),
        tokens=tokens,
        types=types,
        merges=() if pieces else lines_of(content),
        scores=scores_of(content, config.vocab_size) if pieces else (),
        space_prefix=pieces and _has_space_prefix(tokenizer),
        ids={role: index for role, index in ids.items() if index is not None},
        add_bos=add_bos and tokenizer.bos_id is not None,
        chat_template=None if tokenizer.chat_template is None else without_generation(tokenizer.chat_template),
        tokenizer_json=tokenizer.to_json(),
    )


def find_rule(tokenizer: Tokenizer) -> FoundRule:
    """llama.cpp's rule under which all ids stay equal, or all of texts without combining marks.

    TokenizerError shows a text where the nearest one fails.
    """
    content = json.loads(tokenizer.to_json())
    whole_words = bool(content["model"].get("ignore_merges"))
    texts = list(sample_texts(tokenizer))
    wanted = tokenizer.encode_batch(texts)
    wrong: dict[str, list[str]] = {}
    for name, patterns in RULES:
        if whole_words and name != "smaug-bpe":
            continue
        engine = with_rule(content, patterns)
        got = [encoding.ids for encoding in engine.encode_batch_fast(texts, add_special_tokens=False)]
        wrong[name] = [text for text, ours, theirs in zip(texts, wanted, got, strict=True) if ours != theirs]
    name, fails = min(wrong.items(), key=lambda entry: len(entry[1]))
    if all(_has_mark(text) for text in fails):
        return FoundRule(
            name=SMAUG_WITH_WHOLE_WORDS if whole_words else name, tried=len(texts), exceptions=tuple(fails)
        )
    example = min((text for text in fails if not _has_mark(text)), key=len)
    raise TokenizerError(
        f"no rule of llama.cpp cuts text as this tokenizer does: the nearest, {name!r}, gives other ids for "
        f"{len(fails)} of {len(texts)} texts, for example {example[:80]!r}",
        hint="train the tokenizer with split=gpt2 or split=leveret, or serve the model with `leveret serve`",
    )


def _pieces_rule(tokenizer: Tokenizer, content: dict[str, Any]) -> FoundRule:
    """llama.cpp has one rule for sentencepiece; TokenizerError if it gives other ids."""
    scores = scores_of(content, tokenizer.vocab_size)
    prefix = _has_space_prefix(tokenizer)
    added = {entry["content"] for entry in content.get("added_tokens", ())}
    vocabulary = {piece: index for piece, index in tokenizer.ids.items() if piece not in added}
    for special in tokenizer.special_ids:
        if tokenizer.encode(f"{special}a", allow_special=True)[1:] != tokenizer.encode("a"):
            raise TokenizerError(f"no space is put before a text that follows {special!r}; llama.cpp would put one",
                                 hint="serve the model with `leveret serve`")  # fmt: skip
    texts = list(sample_texts(tokenizer))
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        if joined(text, vocabulary, scores, space_prefix=prefix) != ids:
            raise TokenizerError(f"llama.cpp would read {text[:80]!r} into other ids than this sentencepiece tokenizer",
                                 hint="serve the model with `leveret serve`")  # fmt: skip
    return FoundRule(name="default", tried=len(texts), exceptions=())


def _has_space_prefix(tokenizer: Tokenizer) -> bool:
    """Whether encoding puts a space before the text."""
    first = tokenizers.Tokenizer.from_str(tokenizer.to_json()).encode("a", add_special_tokens=False).tokens[0]
    return bool(first.startswith(SPACE))


def sample_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """The texts that a rule must read as the tokenizer does."""
    yield from TEXTS
    draw = random.Random(0)
    special = set(tokenizer.special_ids.values())
    pieces = [tokenizer.token_bytes(index) for index in sorted(tokenizer.ids.values()) if index not in special]
    short = [piece for piece in pieces if len(piece) <= 2]
    for _ in range(CHAINS):
        chain = b"".join(draw.choice(draw.choice((pieces, pieces, short))) for _ in range(24))
        yield chain.decode("utf-8", errors="ignore")
    letters = "".join(TEXTS)
    for _ in range(CHAINS):
        yield "".join(draw.choice(letters) for _ in range(16))


def with_rule(content: dict[str, Any], patterns: tuple[str, ...]) -> tokenizers.Tokenizer:
    """The tokenizer as llama.cpp would have it: no normalizer, these patterns, special tokens read as text."""
    engine = tokenizers.Tokenizer.from_str(json.dumps(content | {"normalizer": None, "post_processor": None}))
    engine.pre_tokenizer = pre_tokenizer(patterns)
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = True
    return engine


def pre_tokenizer(patterns: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    """These patterns one after the other, then bytes."""
    cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def without_generation(template: str) -> str:
    """The template with comments in place of its generation tags: they take the same spaces away around them."""
    return _TAG.sub(lambda tag: f"{{#{tag[1]} {tag[2]}#}}", template)


def vocabulary_of(tokenizer: Tokenizer, content: dict[str, Any], size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The tokens of a file with `size` rows, and their types."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    for piece, index in tokenizer.ids.items():
        tokens[index], types[index] = piece, NORMAL
    if notation_of(content) == "sentencepiece":
        for index, kind in piece_types(content).items():
            types[index] = kind
    for added in content.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        if types[added["id"]] in (NORMAL, UNUSED):
            types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tuple(tokens), tuple(types)


def _has_mark(text: str) -> bool:
    return any(unicodedata.category(character)[0] == "M" for character in text)


def lines_of(content: dict[str, Any]) -> tuple[str, ...]:
    """The merges of a tokenizer.json as a file has them."""
    return tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"])
