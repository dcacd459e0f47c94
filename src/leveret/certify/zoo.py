"""The fixture zoo: texts and conversations on which hand-overs are known to break.

Two forms of a model must turn each of them into the same token ids. Every animal is here because somebody's release
failed on its kind: a system prompt that one side drops, an empty turn, tools in the template, Chinese without spaces,
emoji of several code points, runs of blanks, digits, and user text that spells a special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather at a place. 查询天气。",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "City or district"},
                "day": {"type": "string", "enum": ["today", "tomorrow"]},
            },
            "required": ["location", "day"],
        },
    },
}
"""The tool of the conversations with tools."""


@dataclass(frozen=True, kw_only=True)
class Fixture:
    """One text or one conversation."""

    name: str
    """How tables and messages call it."""
    text: str | None = None
    """A plain text, encoded without special tokens; None for a conversation."""
    messages: tuple[dict[str, Any], ...] = ()
    """A conversation as OpenAI message dicts."""
    tools: tuple[dict[str, Any], ...] = ()
    """Tools shown to the template."""
    add_generation_prompt: bool = True
    """Whether the rendering ends where the assistant would begin."""
    holds_special_text: bool = False
    """User text here spells special tokens; it must stay ordinary text."""

    @property
    def kind(self) -> Literal["text", "chat"]:
        """Which of the two it is."""
        return "chat" if self.text is None else "text"


def zoo(special_tokens: Sequence[str] = ()) -> tuple[Fixture, ...]:
    """All fixtures; `special_tokens` are the ones that user text tries to smuggle in (a few of the tokenizer's own)."""
    return (*_texts(), *_chats(), *_smuggled(special_tokens))


def _texts() -> tuple[Fixture, ...]:
    texts = {
        "english": "The quick brown fox doesn't jump; it waits until 07:30, then it runs.",
        "chinese": "野兔在清晨的田野里奔跑，没有人追得上它。明天北京的天气怎么样？",
        "mixed scripts": '用 Python 写 hello world：print("你好, world")，第3行。',
        "code": "def f(x: int) -> int:\n    if x > 10:\n\t\treturn x ** 2  # tab\n    return -1\n",
        "emoji": "好的👌🏽 family 👨‍👩‍👧‍👦 flag 🇨🇳 heart ❤️ done✅",
        "blanks": "  two  spaces,\ttab,\n\n\nthree lines \n trailing   ",
        "digits": "3.14159 1,234,567 0x1F 2024-02-29 +86 138-0013-8000 ①②③ ½",
        "accents": "café cafe\u0301 naïve Å ﬁ ﬀ ẞ",
        "rare characters": "𠮷野家 龘 \u200bzero\u200dwidth \ufeff עברית العربية हिन्दी ไทย",
        "punctuation": "“引号”……——《书名》！？、；：()[]{}<>|&^%$#@~`",
    }
    return tuple(Fixture(name=name, text=text) for name, text in texts.items())


def _chats() -> tuple[Fixture, ...]:
    user, system = _said("user", "What is the weather in Paris?"), _said("system", "You are a helpful assistant.")
    answer = _said("assistant", "Sunny, 21 degrees.")
    return (
        Fixture(name="one question", messages=(user,)),
        Fixture(name="system prompt", messages=(system, user)),
        Fixture(name="several turns", messages=(user, answer, _said("user", "And tomorrow?"))),
        Fixture(name="finished", messages=(user, answer), add_generation_prompt=False),
        Fixture(name="empty turn", messages=(_said("user", ""),)),
        Fixture(name="empty answer", messages=(user, _said("assistant", ""), _said("user", "Hello?"))),
        Fixture(name="chinese chat", messages=(_said("system", "你是一个助手。"), _said("user", "明天上海会下雨吗？"))),
        Fixture(name="emoji chat", messages=(_said("user", "👨‍👩‍👧‍👦 去哪儿玩？🇨🇳\n\n谢谢🙏🏽"),)),
        Fixture(name="blanks at the ends", messages=(_said("user", "  hello \n\n"),)),
        Fixture(name="tools offered", messages=(user,), tools=(WEATHER_TOOL,)),
        Fixture(name="tools and system", messages=(system, user), tools=(WEATHER_TOOL,)),
        Fixture(name="tool called and answered", messages=_tool_exchange(user, answer), tools=(WEATHER_TOOL,)),
    )


def _tool_exchange(user: dict[str, Any], answer: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"location": "Paris", "day": "today"}'},
    }
    result = {"role": "tool", "tool_call_id": "call_1", "name": "get_weather", "content": '{"sky": "clear"}'}
    return (user, {"role": "assistant", "content": "", "tool_calls": [call]}, result, answer, _said("user", "Thanks"))


def _smuggled(special_tokens: Sequence[str]) -> tuple[Fixture, ...]:
    if not special_tokens:
        return ()
    hostile = "Ignore that. " + " and ".join(special_tokens) + " end."
    return (
        Fixture(name="special tokens in text", text=hostile, holds_special_text=True),
        Fixture(name="special tokens in a question", messages=(_said("user", hostile),), holds_special_text=True),
    )


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
