"""One tokenizer: encode, decode, its special tokens, and the Hugging Face files it lives in.

Three rules hold everywhere in Leveret because they hold here:

1. *Text never becomes a special token by accident.* `encode` reads `<round_end>` inside a text as eleven ordinary
   characters. Only `allow_special=True` reads it as the token, and only code that wrote the text itself passes that.
2. *Nothing is added behind your back.* No BOS, no EOS, unless asked for by name; so a template's BOS is never doubled.
3. *Every id has exact bytes* (token_bytes.py), and decoding is the concatenation of them.

The files are the ecosystem's: `tokenizer.json` (the `tokenizers` library's own format), `tokenizer_config.json` and
`special_tokens_map.json` (which token is BOS, EOS, padding), `chat_template.jinja`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from leveret.config import fingerprint, suggest
from leveret.errors import TokenizerError
from leveret.hub import model_under
from leveret.paths import atomic_write
from leveret.tokenizer.token_bytes import (
    REPLACEMENT,
    SPACE_MARK,
    notation_of,
    put_first_space,
    strips_first_space,
    token_byte_table,
)

ROLES = ("bos_token", "eos_token", "pad_token")


class Tokenizer:
    """A byte-level or sentencepiece BPE tokenizer. Only `add_special_tokens` and `chat_template` change it."""

    def __init__(
        self,
        tokenizer_json: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        # Two engines of one vocabulary, because reading special tokens is a mode of the Rust object and switching a
        # shared object back and forth would be a race between threads.
        self._reading_special = _engine(tokenizer_json, read_special=True)
        self._literal = _engine(tokenizer_json, read_special=False)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        self.chat_template = chat_template
        for role, token in self._tokens.items():
            if token is not None and self._reading_special.token_to_id(token) is None:
                raise TokenizerError(f"the {role} {token!r} is not in the vocabulary")

    # ------------------------------------------------------------------ files

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read a Hugging Face tokenizer directory; TokenizerError if it has no usable `tokenizer.json`.

        An adapter's folder without a tokenizer has that of the model under it.
        """
        directory = Path(directory)
        if not (directory / "tokenizer.json").is_file():
            directory = model_under(directory)
        path = directory / "tokenizer.json"
        if not path.is_file():
            older = next((name for name in ("tokenizer.model", "merges.txt") if (directory / name).is_file()), None)
            raise TokenizerError(
                f"there is no tokenizer.json in {directory}",
                hint=f"{older} is of an older form: `leveret convert {directory} output=...` makes a directory with one"
                if older
                else "name a model directory, or train a tokenizer with `leveret tokenizer`",
            )
        config = _read_json(directory / "tokenizer_config.json")
        token_map = _read_json(directory / "special_tokens_map.json")
        roles = {role: _token_text(config.get(role) or token_map.get(role)) for role in ROLES}
        try:
            return cls(path.read_text("utf-8-sig"), **roles, chat_template=_chat_template(directory, config))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error.message}", hint=error.hint) from error

    def save(self, directory: str | Path) -> None:
        """Write the files into `directory`; `transformers.AutoTokenizer` reads them to the same ids."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        roles = {role: token for role, token in self._tokens.items() if token is not None}
        extra = [token for token in self.special_ids if token not in roles.values()]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **roles,
            "additional_special_tokens": extra,
        }
        atomic_write(directory / "tokenizer.json", self.to_json())
        atomic_write(directory / "tokenizer_config.json", _pretty(config))
        atomic_write(directory / "special_tokens_map.json", _pretty({**roles, "additional_special_tokens": extra}))
        if self.chat_template is not None:
            atomic_write(directory / "chat_template.jinja", self.chat_template)

    def to_json(self) -> str:
        """The content of `tokenizer.json`."""
        content: str = self._reading_special.to_str(pretty=True)
        return content

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which ids a text gets (so not of the chat template)."""
        return fingerprint({"tokenizer": json.loads(self._reading_special.to_str()), "roles": self._tokens})

    # ------------------------------------------------------------------ text to ids

    def encode(
        self, text: str, *, allow_special: bool = False, add_bos: bool = False, add_eos: bool = False
    ) -> list[int]:
        """The ids of `text`. With `allow_special`, special-token text in it becomes that token; otherwise never."""
        engine = self._reading_special if allow_special else self._literal
        ids: list[int] = engine.encode(text, add_special_tokens=False).ids
        return self._framed(ids, add_bos, add_eos)

    def encode_batch(
        self, texts: Sequence[str], *, allow_special: bool = False, add_bos: bool = False, add_eos: bool = False
    ) -> list[list[int]]:
        """`encode` of each text, on all cores at once."""
        engine = self._reading_special if allow_special else self._literal
        encodings = engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._framed(encoding.ids, add_bos, add_eos) for encoding in encodings]

    def encode_with_offsets(
        self, text: str, *, allow_special: bool = False, inside: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `text` and, for each, the half-open range of characters it came from.

        Tokens that share the bytes of one character share its range. With `inside`, `text` goes on behind a special
        token, and what a tokenizer puts before the first word of a text alone is left out; no special token is read.
        """
        engine = self._engine_for(allow_special, inside)
        encoding = engine.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_with_words(
        self, text: str, *, allow_special: bool = False, inside: bool = False
    ) -> tuple[list[int], list[tuple[int, int]], list[int | None]]:
        """`encode_with_offsets`, and for each id the number of the word it is part of: no merge goes over its ends."""
        encoding = self._engine_for(allow_special, inside).encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets, encoding.word_ids

    def _engine_for(self, allow_special: bool, inside: bool) -> tokenizers.Tokenizer:
        if inside:
            return self._literal_inside
        return self._reading_special if allow_special else self._literal

    @cached_property
    def _literal_inside(self) -> tokenizers.Tokenizer:
        """What reads text behind a special token: it differs where a space is put before the first word only.

        Asked of the pre-tokenizer alone: to write out and read 120,000 tokens takes more than half a second.
        """
        own = self._literal.pre_tokenizer
        if own is None or not put_first_space(json.loads(own.__getstate__())):
            return self._literal
        content = json.loads(self._literal.to_str())
        for component in put_first_space(content["pre_tokenizer"]):
            component["prepend_scheme"] = "never"
        return _engine(json.dumps(content), read_special=False)

    def fewest_tokens(self, text: str) -> int:
        """So many ids has `text` at least, told by its length alone, in a small part of the time of reading it.

        No token stands for more bytes than the longest has. White space is not counted: tokenizers drop and mark it in
        their ways. 0 where an id may stand for any length, as unknown pieces do in some vocabularies.
        """
        if self._longest_bytes is None:
            return 0
        if (normalizer := self._literal.normalizer) is not None:
            text = normalizer.normalize_str(text)
        return len("".join(text.replace(SPACE_MARK, " ").split()).encode()) // self._longest_bytes

    @cached_property
    def _longest_bytes(self) -> int | None:
        """Bytes of the longest token without its white space; None where not each byte has a token of its own."""
        tokens = [data for data in self._byte_table if data]
        content = json.loads(self._literal.to_str())
        falls_back = notation_of(content) == "byte-level" or content["model"].get("byte_fallback", False)
        if not falls_back or len({data for data in tokens if len(data) == 1}) < 256:
            return None
        return max(len(b"".join(data.split())) for data in tokens)

    def _framed(self, ids: list[int], add_bos: bool, add_eos: bool) -> list[int]:
        if add_bos:
            ids = [self._required("bos_token"), *ids]
        if add_eos:
            ids = [*ids, self._required("eos_token")]
        return ids

    # ------------------------------------------------------------------ ids to text

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of `ids`. Bytes that are not UTF-8, and ids without a token, read as U+FFFD."""
        data = b"".join(self.bytes_of(index, skip_special=skip_special) for index in ids)
        if self.strips_first_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, index: int) -> bytes:
        """The exact bytes of a token (of a special token: its text in UTF-8); TokenizerError if there is none."""
        data = self._byte_table[index] if 0 <= index < self.vocab_size else None
        if data is None:
            raise TokenizerError(f"there is no token {index}: the vocabulary has {self.vocab_size} tokens")
        return data

    def bytes_of(self, index: int, *, skip_special: bool) -> bytes:
        """What decoding adds to the text for one id: nothing for a skipped special token, U+FFFD for no token."""
        if skip_special and index in self._special_set:
            return b""
        data = self._byte_table[index] if 0 <= index < len(self._byte_table) else None
        return REPLACEMENT if data is None else data

    @cached_property
    def strips_first_space(self) -> bool:
        """Whether decoding drops one leading space (sentencepiece tokenizers add one when encoding)."""
        return strips_first_space(json.loads(self._reading_special.to_str()))

    @cached_property
    def _byte_table(self) -> list[bytes | None]:
        added = {index: token.content for index, token in self._reading_special.get_added_tokens_decoder().items()}
        notation = notation_of(json.loads(self._reading_special.to_str()))
        pieces: dict[str, int] = self._reading_special.get_vocab(with_added_tokens=True)
        return token_byte_table(pieces, added, notation, self.vocab_size)

    # ------------------------------------------------------------------ vocabulary

    @cached_property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included: the highest id plus one."""
        return 1 + max(self._reading_special.get_vocab(with_added_tokens=True).values())

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of every token, as the vocabulary writes it, added tokens included."""
        pieces: dict[str, int] = self._reading_special.get_vocab(with_added_tokens=True)
        return pieces

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Every special token and its id, in id order."""
        decoder = self._reading_special.get_added_tokens_decoder()
        return {token.content: index for index, token in sorted(decoder.items()) if token.special}

    @cached_property
    def _special_set(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())

    def is_special(self, index: int) -> bool:
        """Whether this id is a special token."""
        return index in self._special_set

    def id_of(self, token: str) -> int:
        """The id of a token by its text as the vocabulary writes it; TokenizerError with a suggestion if unknown."""
        index: int | None = self._reading_special.token_to_id(token)
        if index is None:
            nearest = suggest(token, list(self.special_ids))
            raise TokenizerError(
                f"{token!r} is not a token of this tokenizer", hint=f"did you mean {nearest!r}?" if nearest else None
            )
        return index

    def add_special_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Make each text a special token, new ones after the last id in the given order; their ids."""
        added = [tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens]
        for engine in (self._reading_special, self._literal):
            engine.add_special_tokens(added)
        for name in (
            "vocab_size",
            "ids",
            "special_ids",
            "_special_set",
            "_byte_table",
            "_longest_bytes",
            "_literal_inside",
            "fingerprint",
        ):
            self.__dict__.pop(name, None)
        return [self.id_of(token) for token in tokens]

    @property
    def special_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, `pad_token`: those that are set (a chat template reads them by these names)."""
        return {role: token for role, token in self._tokens.items() if token is not None}

    @property
    def bos_id(self) -> int | None:
        """The id that begins a sequence, if there is one."""
        return self._role_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, if there is one."""
        return self._role_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """The id that fills up rows, if there is one."""
        return self._role_id("pad_token")

    def _role_id(self, role: str) -> int | None:
        token = self._tokens[role]
        return None if token is None else self.id_of(token)

    def _required(self, role: str) -> int:
        index = self._role_id(role)
        if index is None:
            raise TokenizerError(f"this tokenizer has no {role}", hint=f'set "{role}" in its tokenizer_config.json')
        return index


def _engine(tokenizer_json: str, *, read_special: bool) -> tokenizers.Tokenizer:
    try:
        engine = tokenizers.Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise TokenizerError(f"this is not a tokenizer the `tokenizers` library can read: {error}") from error
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = not read_special
    return engine


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} must hold a JSON object")
    return content


def _token_text(value: Any) -> str | None:
    """A token as tokenizer_config.json writes it: a string, or an object with its text under "content"."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # the older form with several named templates
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _pretty(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
