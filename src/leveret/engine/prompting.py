"""Prompting: a conversation as the ids that the model continues, and the parts of a model that this needs.

Usually the prompt ends with the template's generation prompt, after which the assistant speaks. A caller may also have
it end after the last message as the template closes it, or in the midst of the last message, to be continued:

    <|user|>Hi<|end|><|assistant|>                 add_generation_prompt (the default)
    <|user|>Hi<|end|><|assistant|>Well,<|end|>     neither
    <|user|>Hi<|end|><|assistant|>Well,            continue_final_message
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leveret.chat.messages import Message
from leveret.chat.template import ChatTemplate, Encoded, template_for
from leveret.engine.defaults import read_defaults
from leveret.engine.request import SamplingParams
from leveret.errors import RequestError, TemplateError
from leveret.tokenizer.files import Tokenizer
from leveret.tools.schema import ToolSet
from leveret.weights.companions import first_with


@dataclass(frozen=True, kw_only=True)
class PromptShape:
    """Where a prompt ends, and what its template is told besides the messages."""

    add_generation_prompt: bool = True
    """Whether the assistant's next turn is opened."""
    continue_final_message: bool = False
    """Whether the last message is left open, to be continued; then nothing is opened after it."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template (`enable_thinking` and the like)."""

    @property
    def opens(self) -> bool:
        """Whether the answer is a turn of its own."""
        return self.add_generation_prompt and not self.continue_final_message


USUAL = PromptShape()
"""The assistant's next turn is opened."""


def chat_ids(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    shape: PromptShape = USUAL,
    tools: Sequence[Mapping[str, Any]] | None = None,
    most_tokens: int | None = None,
) -> list[int]:
    """The ids of a conversation. RequestError when the template refuses it.

    Also when it plainly has more than `most_tokens`: then it is not read to its end, which takes seconds for megabytes.
    """
    given: dict[str, Any] = {"tools": tools, "add_generation_prompt": shape.opens, "variables": shape.variables}

    def encode(messages: Sequence[Message], cuts: Collection[int] = ()) -> Encoded:
        length = LengthCheck(tokenizer, most_tokens, param="messages")
        return template.encode(tokenizer, messages, cuts=cuts, encode_text=length.encode, **given)

    try:
        if not shape.continue_final_message:
            return encode(messages).ids
        word = _unknown_word(messages)
        marked = [*messages[:-1], replace(messages[-1], content=messages[-1].content.rstrip() + word)]
        end = _end_of_last_message(encode(marked).text, messages[-1], word)
        cut = encode(marked, cuts=(end,))
        return [token_id for token_id, (_, last) in zip(cut.ids, cut.offsets, strict=True) if last <= end]
    except TemplateError as error:
        raise RequestError(error.message, param="messages", code="invalid_value", hint=error.hint) from None


class LengthCheck:
    """Looks at a prompt, piece by piece, before it is read."""

    def __init__(self, tokenizer: Tokenizer, most_tokens: int | None, *, param: str) -> None:
        """`param`: what the caller calls the prompt."""
        self._tokenizer = tokenizer
        self._most = most_tokens
        self._param = param
        self._fewest = 0

    def encode(self, text: str, allow_special: bool, inside: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """`Tokenizer.encode_with_offsets` of a piece that may fit."""
        self.take(text)
        return self._tokenizer.encode_with_offsets(text, allow_special=allow_special, inside=inside)

    def take(self, text: str) -> None:
        """One more piece. RequestError when all of them together cannot fit, however they are read."""
        if self._most is None:
            return
        self._fewest += self._tokenizer.fewest_tokens(text)
        if self._fewest > self._most:
            raise RequestError(
                f"the prompt has {self._fewest} tokens at least, and there is room for {self._most}",
                param=self._param,
                code="context_length_exceeded",
                hint="shorten the prompt",
            )


def _unknown_word(messages: Sequence[Message]) -> str:
    """A word that no message holds: written behind the last one, it is found where a template has put that."""
    word = "leveret0here"
    while any(word in message.content for message in messages):
        word += "0"
    return word


def _end_of_last_message(text: str, message: Message, word: str) -> int:
    """Where the last message ends in a text that has a word behind it. White space there belongs to no answer."""
    content = message.content.strip()
    place = text.rfind(word)
    if not content or not text[: max(0, place)].endswith(content):
        raise RequestError(
            "the last message cannot be continued: "
            + ("it is empty" if not content else "the chat template does not write it as it is"),
            param="continue_final_message",
            code="invalid_value",
        )
    return place


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What lies beside the weights of a model."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    tools: ToolSet | None
    defaults: SamplingParams


def find_parts(folders: Sequence[Path]) -> Parts:
    """The parts of a model, each from the first folder that has it: an adapter brings what differs from its model.

    Raises TokenizerError, TemplateError, ToolError or WeightsError, naming the file that is wrong.
    """
    tokenizer = Tokenizer.load(first_with("tokenizer.json", folders))
    tools = first_with("tools.json", folders)
    return Parts(
        tokenizer=tokenizer,
        template=None if tokenizer.chat_template is None else template_for(tokenizer),
        tools=ToolSet.load(tools) if (tools / "tools.json").exists() else None,
        defaults=read_defaults(first_with("generation_config.json", folders)),
    )
