"""A chat template: messages in, token ids and training mask out, in one pass.

Training and serving must write a conversation the same way to the last byte, so there is one route. `encode` renders
the messages with the model's own Jinja template, finds which special tokens the *template* wrote (provenance.py), lets
the tokenizer read the text between them in one piece, and marks the tokens inside `{% generation %}` blocks, which the
model writes (which of them are trained: data/masks.py).
For a conversation without special-token text the ids are those of transformers' `apply_chat_template`.

A template file may begin with a comment that other programs skip and we read:

    {#- leveret: {"special_tokens": ["<round_start>", "<round_end>"], "stops": ["###"]} -#}

`special_tokens` must exist in the tokenizer; `stops` are further strings that end a reply, beside the one that the
template writes after it.
"""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import jinja2

from leveret.chat.environment import MARKS_VARIABLE, compile_template
from leveret.chat.marks import Marks, Rendered, without_marks
from leveret.chat.messages import Message
from leveret.chat.provenance import Guard, guard_for
from leveret.config import suggest
from leveret.errors import TemplateError
from leveret.tokenizer.files import Tokenizer

BuiltinName = Literal[
    "chatml",
    "hare",
    "huozi",
    "aquila-chat",
    "aquila-legacy",
    "aquila",
    "aquila-v1",
    "aquila-v2",
    "lingowhale",
]
BUILTIN_NAMES: tuple[str, ...] = get_args(BuiltinName)

CHINESE_ROLES = {"system": "系统", "user": "用户", "assistant": "助手"}
"""Role names of Huozi, whose template writes a message's role as it is."""

_HEADER = re.compile(r"\{#-?\s*leveret:(?P<json>.*?)-?#\}", re.DOTALL)
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_PROBE = "leveret0probe"


EncodeText = Callable[[str, bool, bool], tuple[list[int], list[tuple[int, int]]]]
"""Reads a text: its ids, and for each the range of characters it came from. The flags: read special tokens as such;
the text goes on behind a special token."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A conversation as token ids."""

    ids: list[int]
    text: str
    offsets: list[tuple[int, int]]
    """For each id the half-open range of characters of `text` it came from."""
    replies: tuple[tuple[int, int], ...]
    """The character ranges of the generation blocks, in order."""

    @property
    def mask(self) -> list[bool]:
        """For each id whether the model writes it."""
        return self.marked(self.replies)

    def marked(self, spans: Sequence[tuple[int, int]]) -> list[bool]:
        """For each id whether it holds a character of one of the spans (in order, apart from each other)."""
        marks = [False] * len(self.ids)
        for start, end in spans:
            for index in self.places(start, end):
                marks[index] = True
        return marks

    def places(self, start: int, end: int) -> range:
        """The ids that hold a character of `text[start:end]`."""
        first = bisect_right(self.offsets, start, key=lambda offset: offset[1])
        return range(first, bisect_left(self.offsets, end, lo=first, key=lambda offset: offset[0]))


class ChatTemplate:
    """One template; `variables` are what it reads besides the messages (`bos_token` and the like)."""

    def __init__(self, source: str, *, name: str = "custom", variables: Mapping[str, Any] | None = None) -> None:
        self.source = source
        self.name = name
        self._variables = dict(variables or {})
        self._compiled = compile_template(source, name)
        header = _header(source, name)
        self.special_tokens: tuple[str, ...] = tuple(header.get("special_tokens", ()))
        self._declared_stops: tuple[str, ...] = tuple(header.get("stops", ()))
        self.role_names = CHINESE_ROLES if "助手" in source and "assistant" not in source else {}
        """Our role names -> the template's own, for one that writes the names it is given and speaks Chinese."""
        self.writes_calls = "tool_calls" in source
        """Whether the template writes tool calls; where it does not they must stand in the content."""
        self.writes_reasoning = "reasoning_content" in source
        """Whether the template writes what a reply's writer thought first."""
        self.trains = _GENERATION.search(source) is not None
        """Whether the template says what to train on."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """The text of a conversation; TemplateError if the template refuses it. `messages` stay unchanged."""
        return self._render(messages, tools, add_generation_prompt, variables, None)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
        encode_text: EncodeText | None = None,
        cuts: Collection[int] = (),
    ) -> Encoded:
        """The ids of a conversation, and where in it the model writes.

        Special tokens stand only where the template, or trusted content, wrote them. TemplateError if the template
        refuses the conversation or needs a special token that the tokenizer does not have.

        encode_text: reads the text in place of the tokenizer (BPE dropout does).
        cuts: places of the rendered text that no token may cross.
        """
        self._check_tokens(tokenizer)
        guard = guard_for(tuple(tokenizer.special_ids))
        variables = {**tokenizer.special_tokens, **(variables or {})}
        rendered = self._render(messages, tools, add_generation_prompt, variables, guard)
        read = encode_text or _reader(tokenizer)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in itertools.pairwise(sorted({0, *cuts, len(rendered.text)})):
            piece, untrusted = rendered.text[start:end], [place - start for place in rendered.untrusted]
            piece_ids, piece_offsets = (
                _encode_around(read, tokenizer.special_ids, guard, piece, untrusted)
                if untrusted
                else read(piece, True, False)
            )
            ids += piece_ids
            offsets += [(first + start, last + start) for first, last in piece_offsets] if start else piece_offsets
        return Encoded(ids=ids, text=rendered.text, offsets=offsets, replies=rendered.spans)

    # ------------------------------------------------------------------ how a reply begins and ends

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a reply: what the template writes after it, then those its header declares."""
        return tuple(dict.fromkeys(stop for stop in (self._written_around_reply[1], *self._declared_stops) if stop))

    @property
    def reply_prefix(self) -> str:
        """What a reply begins with before its content (a space in the Aquila templates, usually nothing)."""
        return self._written_around_reply[0]

    def reply_prefix_given(self, variables: Mapping[str, Any]) -> str:
        """The same where a request gives the template further variables."""
        return self._around_reply(variables)[0] if variables else self.reply_prefix

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids of those stops that are special tokens of `tokenizer`."""
        return tuple(tokenizer.special_ids[stop] for stop in self.stops if stop in tokenizer.special_ids)

    @cached_property
    def _written_around_reply(self) -> tuple[str, str]:
        return self._around_reply({})

    def _around_reply(self, variables: Mapping[str, Any]) -> tuple[str, str]:
        """What stands between the generation prompt and a reply's content, and what ends the reply."""
        question, reply = Message("user", "?"), Message("assistant", _PROBE)
        try:
            prompt = self.render([question], add_generation_prompt=True, variables=variables).text
            whole = self.render([question, reply], variables=variables)
        except TemplateError:
            return "", ""
        start = whole.text.find(_PROBE)
        if start < 0:
            return "", ""
        prefix = whole.text[len(prompt) : start] if whole.text.startswith(prompt) else ""
        end = max((span[1] for span in whole.spans), default=None)
        suffix = whole.text[start + len(_PROBE) : end]
        return prefix, suffix if whole.spans else suffix.strip()

    # ------------------------------------------------------------------ rendering

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None,
        guard: Guard | None,
    ) -> Rendered:
        self._check_calls(messages)
        messages = [replace(message, role=self.role_names.get(message.role, message.role)) for message in messages]
        plain = [message.to_dict() for message in messages]
        schemas = None if tools is None else [dict(tool) for tool in tools]
        marks = Marks.absent_from(json.dumps([plain, schemas], ensure_ascii=False) + self.source)
        inputs = {**self._variables, **(variables or {}), "add_generation_prompt": add_generation_prompt}
        inputs |= {"documents": None, MARKS_VARIABLE: marks}
        if guard is not None:
            guarded = [_guarded(message, guard, marks) for message in messages]
            guarded_schemas = guard.mark(schemas, marks.untrusted, edges=False)
            if guarded != plain or guarded_schemas != schemas:
                rendered = self._run({**inputs, "messages": guarded, "tools": guarded_schemas}, marks)
                if rendered.text != self._run({**inputs, "messages": plain, "tools": schemas}, marks).text:
                    raise TemplateError(
                        f"chat template {self.name!r} treats special-token text in a message in a way of its own, "
                        "so the message cannot be encoded safely",
                        hint="remove the special-token text from the message",
                    )
                return rendered
        return self._run({**inputs, "messages": plain, "tools": schemas}, marks)

    def _run(self, inputs: Mapping[str, Any], marks: Marks) -> Rendered:
        try:
            rendered = without_marks(self._compiled.render(inputs), marks)
            rendered.text.encode()  # half a character, of a tool's description or a variable, is no text
            return rendered
        except jinja2.TemplateError as error:
            raise TemplateError(f"chat template {self.name!r}: {error.message or error}") from error
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise TemplateError(
                f"chat template {self.name!r} cannot render this conversation: {type(error).__name__}: {error}"
            ) from error

    def _check_tokens(self, tokenizer: Tokenizer) -> None:
        missing = [token for token in self.special_tokens if token not in tokenizer.special_ids]
        if missing:
            raise TemplateError(
                f"chat template {self.name!r} needs the special tokens {missing}, which this tokenizer does not have",
                hint="train the tokenizer with them, or add them (and resize the model's embeddings)",
            )

    def _check_calls(self, messages: Sequence[Message]) -> None:
        if not self.writes_calls and any(message.tool_calls for message in messages):
            raise TemplateError(
                f"chat template {self.name!r} does not write tool calls, so they would be lost",
                hint="write the calls into the message's content first (a tool dialect does), or use another template",
            )


def builtin_template(name: str) -> ChatTemplate:
    """One of the templates in `builtin/`; TemplateError with a suggestion for any other name."""
    if name not in BUILTIN_NAMES:
        nearest = suggest(name, BUILTIN_NAMES)
        raise TemplateError(
            f"there is no built-in chat template {name!r}",
            hint=f"did you mean {nearest!r}?" if nearest else f"built in are: {', '.join(BUILTIN_NAMES)}",
        )
    source = resources.files("leveret.chat").joinpath("builtin", f"{name}.jinja").read_text("utf-8")
    return ChatTemplate(source, name=name)


def template_for(model: Tokenizer | str | Path) -> ChatTemplate:
    """The template that came with a tokenizer or a model directory; TemplateError if none did."""
    tokenizer = model if isinstance(model, Tokenizer) else Tokenizer.load(model)
    if tokenizer.chat_template is None:
        raise TemplateError(
            "this model has no chat template",
            hint=f"it may be a base model: use `generate`, or name a built-in template: {', '.join(BUILTIN_NAMES)}",
        )
    return ChatTemplate(tokenizer.chat_template, name="of the model", variables=tokenizer.special_tokens)


def _guarded(message: Message, guard: Guard, marks: Marks) -> dict[str, Any]:
    plain = message.to_dict()
    content = plain.pop("content")
    return {
        "role": guard.mark(plain.pop("role"), marks.untrusted, edges=False),
        "content": content if message.trusted else guard.mark(content, marks.untrusted),
        **guard.mark(plain, marks.untrusted),
    }


def _reader(tokenizer: Tokenizer) -> EncodeText:
    return lambda text, allow_special, inside: tokenizer.encode_with_offsets(
        text, allow_special=allow_special, inside=inside
    )


def _encode_around(
    read: EncodeText, special_ids: Mapping[str, int], guard: Guard, text: str, untrusted: Collection[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and character ranges, with special tokens only where no character of them is untrusted."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    position = 0
    for start, end in [*guard.find(text, untrusted), (len(text), len(text))]:
        piece_ids, piece_offsets = read(text[position:start], False, position > 0)
        ids += piece_ids
        offsets += [(first + position, last + position) for first, last in piece_offsets]
        if end > start:
            ids.append(special_ids[text[start:end]])
            offsets.append((start, end))
        position = end
    return ids, offsets


def _header(source: str, name: str) -> dict[str, list[str]]:
    match = _HEADER.match(source)
    if match is None:
        return {}
    try:
        header: dict[str, list[str]] = json.loads(match.group("json"))
    except ValueError as error:
        raise TemplateError(f"chat template {name!r}: its leveret comment is not valid JSON: {error}") from error
    wrong = not isinstance(header, dict) or set(header) - {"special_tokens", "stops"}
    if wrong or not all(isinstance(value, list) for value in header.values()):
        raise TemplateError(
            f'chat template {name!r}: its leveret comment must be {{"special_tokens": [...], "stops": [...]}}'
        )
    return header
