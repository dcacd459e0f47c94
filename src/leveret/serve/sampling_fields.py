"""The fields of a request that say how its answer is sampled and where it stops, and the options they become.

OpenAI's names stand beside those that vLLM and llama.cpp added and clients came to use: `top_k` (0 and -1 mean all),
`min_p`, `repetition_penalty`, `stop_token_ids`, `ignore_eos`, `skip_special_tokens`. A field that is absent or null
takes the model's own default. Ranges are checked where the values are used (`engine/request.py`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from leveret.engine.defaults import SamplingOptions
from leveret.errors import RequestError

MAX_STOPS = 16
"""Most stop strings a request may give; OpenAI's is 4."""

MAX_BIASES = 1024
"""Most tokens a request may give a bias; vLLM's limit too."""


def listed(value: object) -> object:
    """A single text as a list of one."""
    return [value] if isinstance(value, str) else value


def _by_id(value: object) -> object:
    """JSON writes every key as a text."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if not (isinstance(key, str) and key.isascii() and key.isdigit()):
            raise RequestError(f"logit_bias has the key {key!r}, which is no token id", param="logit_bias")
    return {int(key): number for key, number in value.items()}


class SamplingFields(BaseModel):
    """What both generating endpoints take."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[int, float], Field(max_length=MAX_BIASES), BeforeValidator(_by_id)] | None = None
    seed: int | None = None
    stop: Annotated[list[str], Field(max_length=MAX_STOPS), BeforeValidator(listed)] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None

    def sampling(self) -> SamplingOptions:
        """The options that the fields give."""
        given: dict[str, Any] = self.model_dump(include=set(SamplingFields.model_fields), exclude_none=True)
        if "stop_token_ids" in given:
            given["stop_ids"] = given.pop("stop_token_ids")
        if given.get("top_k") in (0, -1):
            given["top_k"] = None
        options: SamplingOptions = {}
        options.update(given)  # type: ignore[typeddict-item]  # the same names, checked by a test
        return options
