"""A tokenizer.json from the keys of a GGUF file that another program wrote: vocabulary, and merges or scores.

    gpt2     byte-level BPE: merges and the name of a rule that cuts text (`gguf_tokenizer.RULES`)
    llama    sentencepiece BPE: scores. Two pieces that join to a third are a merge; its rank is by the third's score

What the file does not hold cannot be rebuilt (other kinds, unknown rules): None, never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from leveret.weights.gguf_sentencepiece import SPACE, UNKNOWN_TYPE
from leveret.weights.gguf_tokenizer import CONTROL, RULES, SMAUG_WITH_WHOLE_WORDS, USER_DEFINED, pre_tokenizer


def rebuilt(keys: Mapping[str, Any]) -> str | None:
    """The tokenizer.json, as text; None if it cannot be built from these keys."""
    kind = keys.get("tokenizer.ggml.model")
    if not keys.get("tokenizer.ggml.tokens") or not keys.get("tokenizer.ggml.token_type"):
        return None
    if kind == "gpt2":
        return _byte_level(keys)
    if kind == "llama" and keys.get("tokenizer.ggml.scores"):
        return _sentencepiece(keys)
    return None


def _byte_level(keys: Mapping[str, Any]) -> str | None:
    name = keys.get("tokenizer.ggml.pre", "")
    whole_words = name == SMAUG_WITH_WHOLE_WORDS
    patterns = dict(RULES).get("smaug-bpe" if whole_words else name)
    if patterns is None:
        return None
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    outside = {token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)}
    vocabulary = {token: index for index, token in enumerate(tokens) if token not in outside}
    merges = [tuple(merge.split(" ", 1)) for merge in keys["tokenizer.ggml.merges"]]
    engine = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_words))
    engine.decoder = decoders.ByteLevel()
    engine.pre_tokenizer = pre_tokenizer(patterns)
    added = [
        {"id": index, "content": token, "special": types[index] == CONTROL, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for index, token in enumerate(tokens) if token in outside
    ]  # fmt: skip
    return json.dumps(json.loads(engine.to_str()) | {"added_tokens": added})


def _sentencepiece(keys: Mapping[str, Any]) -> str:
    tokens: list[str] = keys["tokenizer.ggml.tokens"]
    types: list[int] = keys["tokenizer.ggml.token_type"]
    scores: list[float] = keys["tokenizer.ggml.scores"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    outside = {token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN_TYPE), None)
    merges = _merges({token: index for token, index in vocabulary.items() if token not in outside}, scores)
    engine = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, byte_fallback=True, fuse_unk=True)
    )
    prefix = [normalizers.Prepend(SPACE)] if keys.get("tokenizer.ggml.add_space_prefix", True) else []
    engine.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    engine.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    for token in sorted(outside | ({unknown} if unknown else set()), key=lambda token: vocabulary[token]):
        special = types[vocabulary[token]] != USER_DEFINED
        entry = AddedToken(token, special=special, normalized=False)
        (engine.add_special_tokens if special else engine.add_tokens)([entry])
    text: str = engine.to_str()
    return text


def _merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """All pairs that join to a piece, the best score first; of equal ones those with the lower ids."""
    pairs = [
        (-scores[index], vocabulary[whole[:cut]], vocabulary[whole[cut:]], whole[:cut], whole[cut:])
        for whole, index in vocabulary.items()
        for cut in range(1, len(whole))
        if whole[:cut] in vocabulary and whole[cut:] in vocabulary
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]
