"""A tokenizer.json from the older files that releases bring: GPT-2's vocab.json and merges.txt, or sentencepiece.

    vocab.json, merges.txt    byte-level BPE as GPT-2 cuts text (Aquila2)
    tokenizer.model           sentencepiece BPE: pieces and scores (Llama 2, Mixtral, Huozi, LingoWhale)

Added tokens stand in added_tokens.json or in tokenizer_config.json's `added_tokens_decoder`. What comes out of a
sentencepiece file must give sentencepiece's own ids on texts of all kinds; where it does not, nothing is written.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from leveret.errors import TokenizerError
from leveret.extras import require
from leveret.paths import atomic_write
from leveret.weights.gguf_rebuilt import rebuilt
from leveret.weights.gguf_sentencepiece import BYTE_TYPE, UNKNOWN_TYPE
from leveret.weights.gguf_tokenizer import CONTROL, NORMAL, TEXTS, UNUSED, USER_DEFINED
from leveret.weights.safetensors import read_json

BPE = 2
"""sentencepiece's number of that model type."""


def write_tokenizer_json(folder: Path) -> str | None:
    """Make tokenizer.json of the older files in a folder; what was done, in a sentence, None if there are none.

    TokenizerError names what cannot be read, MissingExtra the package that reads sentencepiece.
    """
    if (folder / "tokenizer.json").is_file():
        return None
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        engine, origin = _gpt2(folder), "vocab.json and merges.txt"
    elif (folder / "tokenizer.model").is_file():
        engine, origin = _sentencepiece(folder / "tokenizer.model"), "tokenizer.model"
    else:
        return None
    for index, token, special in _added(folder):
        known = engine.token_to_id(token)
        if known not in (None, index):
            raise TokenizerError(f"{token!r} is id {known} in {origin} and {index} among the added tokens",
                                 hint="correct added_tokens.json")  # fmt: skip
        entry = AddedToken(token, special=special, normalized=False)
        (engine.add_special_tokens if special else engine.add_tokens)([entry])
        if (given := engine.token_to_id(token)) != index:
            raise TokenizerError(f"the added token {token!r} should have id {index}, but {given} is the next free one",
                                 hint="ids must follow one another")  # fmt: skip
    _begin_with_bos(engine, _json(folder / "tokenizer_config.json"))
    atomic_write(folder / "tokenizer.json", engine.to_str(pretty=True))
    return f"tokenizer.json was made of {origin}"


def _gpt2(folder: Path) -> Tokenizer:
    try:
        vocabulary = {str(token): int(index) for token, index in read_json(folder / "vocab.json").items()}
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        engine = Tokenizer(models.BPE(vocab=vocabulary, merges=[(first, second) for first, second in pairs]))
    except Exception as error:  # the library raises bare Exception for merges that do not fit
        raise TokenizerError(f"vocab.json and merges.txt in {folder} do not belong together: {error}",
                             hint="fetch both again")  from error  # fmt: skip
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    engine.decoder = decoders.ByteLevel()
    return engine


def _sentencepiece(path: Path) -> Tokenizer:
    library = require("sentencepiece", extra="sentencepiece", purpose=f"reading {path.name}")
    require("google.protobuf", extra="sentencepiece", purpose=f"reading {path.name}")
    model = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
        reader = library.SentencePieceProcessor(model_proto=model.SerializeToString())
    except Exception as error:  # protobuf's error types differ by version
        raise TokenizerError(f"{path} is no sentencepiece model: {error}", hint="fetch it again") from error
    if model.trainer_spec.model_type != BPE:
        raise TokenizerError(f"{path} is a sentencepiece model of another type than BPE",
                             hint="convert it with transformers, and copy the tokenizer.json")  # fmt: skip
    text = rebuilt(_keys(model))
    assert text is not None
    engine = Tokenizer.from_str(text)
    for sample in TEXTS:
        wanted = reader.encode(sample)
        if engine.encode(sample, add_special_tokens=False).ids != wanted:
            raise TokenizerError(f"sentencepiece reads {sample[:60]!r} into other ids than a tokenizer.json of {path}",
                                 hint="its normalization is another; convert it with transformers")  # fmt: skip
    return engine


def _keys(model: Any) -> dict[str, Any]:
    """The model as a GGUF file would say it."""
    kinds = {1: NORMAL, 2: UNKNOWN_TYPE, 3: CONTROL, 4: USER_DEFINED, 5: UNUSED, 6: BYTE_TYPE}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.piece for piece in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
        "tokenizer.ggml.token_type": [kinds[piece.type] for piece in model.pieces],
        "tokenizer.ggml.add_space_prefix": bool(model.normalizer_spec.add_dummy_prefix),
    }


def _begin_with_bos(engine: Tokenizer, settings: Mapping[str, Any]) -> None:
    """What the old classes did to a text: Llama's put BOS before it unless told not to, the others if told to."""
    token = _text(settings.get("bos_token"))
    llama = str(settings.get("tokenizer_class", "")).startswith("LlamaTokenizer")
    if token is None or not settings.get("add_bos_token", llama) or (index := engine.token_to_id(token)) is None:
        return
    engine.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, index)]
    )


def _added(folder: Path) -> Iterator[tuple[int, str, bool]]:
    """(id, text, special) of the added tokens, in the order of their ids."""
    found: dict[int, tuple[str, bool]] = {}
    settings, roles = _json(folder / "tokenizer_config.json"), _json(folder / "special_tokens_map.json")
    named = [*roles.values(), *(settings.get(key) for key in ("bos_token", "eos_token", "unk_token", "pad_token"))]
    for source in (settings, roles):
        named += source.get("additional_special_tokens") or ()
    special = {text for value in named if (text := _text(value)) is not None}
    for token, index in _json(folder / "added_tokens.json").items():
        found[int(index)] = (token, token in special)
    for index, entry in (settings.get("added_tokens_decoder") or {}).items():
        found[int(index)] = (str(entry["content"]), bool(entry.get("special")))
    vocabulary = _json(folder / "vocab.json")
    for text in special & vocabulary.keys():
        found.setdefault(int(vocabulary[text]), (text, True))
    for index in sorted(found):
        yield index, *found[index]


def _text(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
