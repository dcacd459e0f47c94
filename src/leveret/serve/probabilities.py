"""Log probabilities in the two shapes of the OpenAI API.

    chat         {"content": [{"token", "logprob", "bytes", "top_logprobs": [{"token", "logprob", "bytes"}]}]}
    completions  {"tokens": [], "token_logprobs": [], "top_logprobs": [{token: logprob}], "text_offset": []}

A token may hold a part of a character only. Its `bytes` are exact; as a text it is written `bytes:\\xe6\\x98`, OpenAI's
way, so that two such tokens stay two keys. JSON has no infinity: what is impossible has -9999.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leveret.engine.score_line import PlacedScore
from leveret.engine.token_score import TokenScore
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.stream import StreamDecoder

IMPOSSIBLE = -9999.0
"""What stands for minus infinity."""


def chat_logprobs(scores: Sequence[PlacedScore], tokenizer: Tokenizer) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        data = tokenizer.bytes_of(token_id, skip_special=False)
        return {"token": shown(data), "logprob": _finite(logprob), "bytes": list(data)}

    content = [
        {**entry(each.score.id, each.score.logprob), "top_logprobs": [entry(*pair) for pair in each.score.top]}
        for each in scores
    ]
    return {"content": content, "refusal": None}


def text_logprobs(
    scores: Sequence[PlacedScore], tokenizer: Tokenizer, *, prompt: Sequence[TokenScore] = (), offset: int = 0
) -> dict[str, Any]:
    """The `logprobs` of a completion's choice; `prompt` comes before, and `offset` characters of it."""
    placed = [*_placed(prompt, tokenizer), *((each.score, offset + each.start) for each in scores)]
    return {
        "tokens": [_text(score.id, tokenizer) for score, _ in placed],
        "token_logprobs": [None if score.logprob is None else _finite(score.logprob) for score, _ in placed],
        "top_logprobs": [_alternatives(score, tokenizer) for score, _ in placed],
        "text_offset": [start for _, start in placed],
    }


def shown(data: bytes) -> str:
    """A token's bytes as a text, no two the same."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _alternatives(score: TokenScore, tokenizer: Tokenizer) -> dict[str, float] | None:
    """The likeliest tokens, and the token itself, as OpenAI gives it too."""
    if score.logprob is None:
        return None
    pairs = (*score.top, (score.id, score.logprob))
    return {_text(token_id, tokenizer): _finite(logprob) for token_id, logprob in pairs}


def _placed(scores: Sequence[TokenScore], tokenizer: Tokenizer) -> list[tuple[TokenScore, int]]:
    """The prompt's tokens, and how many characters begin before each."""
    placed, decoder, read = [], StreamDecoder(tokenizer), 0
    for score in scores:
        text = decoder.push(score.id)
        placed.append((score, read + decoder.num_before))
        read += len(text)
    return placed


def _text(token_id: int, tokenizer: Tokenizer) -> str:
    return shown(tokenizer.bytes_of(token_id, skip_special=False))


def _finite(logprob: float | None) -> float:
    return IMPOSSIBLE if logprob is None else max(logprob, IMPOSSIBLE)
