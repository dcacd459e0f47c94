"""Jobs: a prompt or a conversation as a request for the engine, with the answer that its ids will become.

A JobMaker has what that takes: tokenizer, chat template, tools, and the sampling of the model's
generation_config.json, which a caller's options go over. TextModel (text.py) and the server run what it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from numbers import Integral
from typing import Any, Unpack

import tokenizers

from leveret.chat.messages import Message, checked_text, messages_from
from leveret.chat.template import ChatTemplate
from leveret.engine.assembler import TextAssembler
from leveret.engine.backend import Backend
from leveret.engine.defaults import SamplingOptions, with_options
from leveret.engine.prompting import USUAL, LengthCheck, PromptShape, chat_ids
from leveret.engine.reply import Answer, TextAnswer
from leveret.engine.request import Constraint, Request, SamplingParams
from leveret.engine.structure import AnswerOptions, Structure, split_options
from leveret.engine.tool_calls import OfferedTools, ToolChoice, last_query
from leveret.engine.tool_desk import ToolDesk
from leveret.engine.tool_offer import offer_from
from leveret.errors import RequestError
from leveret.tokenizer.files import Tokenizer
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import ToolSet

ROLES = ("system", "user", "assistant", "tool")
"""Who may say something, after `chat/messages.py` has translated other names for them."""

Messages = Sequence[Message | Mapping[str, Any]]
"""A conversation: `Message`s, or dictionaries in OpenAI's form. Content is never trusted with special tokens here."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request for the engine, and the answer that its ids become."""

    request: Request
    answer: Answer
    prompt_logprobs: int | None = None
    """Score the prompt's tokens too, with so many alternatives; None: no. The server's worker does it."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt that has been read. Jobs for any number of answers to it are made of it, without reading it again."""

    request: Request
    """Its ids and how to sample; by this it is known whether the answers fit (`Backend.check`)."""
    begin: Callable[[], tuple[Answer, Constraint | None]]
    """Makes what one answer becomes, and what it is kept to."""

    def job(self, *, seed: int | None = None) -> Job:
        """A job for one answer; `seed`: in place of the request's. RequestError when its form cannot be compiled."""
        answer, constraint = self.begin()
        params = self.request.params if seed is None else replace(self.request.params, seed=seed)
        request = replace(self.request, params=params, constraint=constraint, watch=answer.watch, record=answer.record)
        return Job(request=request, answer=answer)


class ChatOptions(AnswerOptions, total=False):
    """The options of an answer in a conversation."""

    tools: OfferedTools
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    constrained: bool
    shape: PromptShape


class JobMaker:
    """Makes jobs for one model; the base of TextModel."""

    def __init__(
        self,
        engine: Backend,
        tokenizer: Tokenizer,
        *,
        template: ChatTemplate | None,
        tools: ToolSet | None,
        defaults: SamplingParams | None,
        name: str,
    ) -> None:
        """Parts that belong together."""
        self.engine = engine
        """What runs the model; our own engine or another program behind the same interface."""
        self.tokenizer = tokenizer
        self.template = template
        """None for a base model that has no chat template."""
        self.tools = tools
        """The tools the model has functional tokens for; None when it has none."""
        self.defaults = defaults or SamplingParams()
        """Sampling where the caller says nothing."""
        self.name = name
        """Name of the model's directory."""
        self._adds_bos = _adds_bos(tokenizer)
        self.dialect = None if tools is None else FunctionalDialect(tools, reserved=tokenizer.special_ids)

    def prepare_text(self, prompt: str | Sequence[int], **options: Unpack[AnswerOptions]) -> Job:
        """A job that continues a text or token ids. A text gets a BOS if the tokenizer's files say so."""
        return self.read_text(prompt, **options).job()

    def read_text(self, prompt: str | Sequence[int], **options: Unpack[AnswerOptions]) -> Prompt:
        """The prompt of `prepare_text`."""
        if isinstance(prompt, str):
            text = checked_text(prompt, "prompt")
            LengthCheck(self.tokenizer, self.engine.context_tokens, param="prompt").take(text)
            ids = self.tokenizer.encode(text, add_bos=self._adds_bos)
        else:
            ids = _ids(prompt)
        structure, sampling = split_options(options)
        if structure is not None:
            self.engine.check_form(structure.param)
        return self._text_prompt(ids, self._params(ids, sampling), structure=structure)

    def prepare_chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Job:
        """A job for the assistant's next turn; the arguments are those of `chat`, and where the prompt ends."""
        return self.read_chat(messages, **options).job()

    def read_chat(
        self,
        messages: Messages,
        *,
        tools: OfferedTools = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        constrained: bool = True,
        shape: PromptShape = USUAL,
        **options: Unpack[AnswerOptions],
    ) -> Prompt:
        """The prompt of `prepare_chat`."""
        template = self._need_template()
        offer = offer_from(tools, self.tools, tool_choice=tool_choice, parallel=parallel_tool_calls)
        conversation = _messages(messages)
        shown, entries = self._desk.shown(offer, conversation)
        most = self.engine.context_tokens
        ids = chat_ids(template, self.tokenizer, shown, shape=shape, tools=entries, most_tokens=most)
        structure, sampling = split_options(options)
        if structure is not None:
            self.engine.check_form(structure.param)
        if structure is not None and not (constrained or offer.empty):
            raise RequestError(
                f"{structure.param} keeps an answer to a form, and constrained is false",
                param=structure.param,
                code="invalid_value",
            )
        if constrained and not offer.empty:
            self.engine.check_form("tools")
        params = self._params(ids, sampling, template, structured=structure is not None)
        prefix = template.reply_prefix_given(shape.variables) if shape.opens else ""
        if offer.empty:
            params = replace(params, banned_ids=(*params.banned_ids, *self._desk.silent_ids()))
            return self._text_prompt(ids, params, prefix=prefix, structure=structure)
        begin = partial(
            self._desk.answer,
            offer,
            params,
            query=last_query(conversation),
            prefix=prefix,
            form=structure,
            constrained=constrained,
        )
        if constrained:
            params = replace(params, stop_ids=self._desk.stop_ids(offer, params))
        return Prompt(request=Request(prompt_ids=tuple(ids), params=params), begin=begin)

    def _text_prompt(
        self, ids: list[int], params: SamplingParams, *, prefix: str = "", structure: Structure | None = None
    ) -> Prompt:
        def begin() -> tuple[Answer, Constraint | None]:
            form = None if structure is None else self._desk.form(structure, params, prefix)
            skip = params.skip_special_tokens
            assembler = TextAssembler(self.tokenizer, params.stop, prefix=prefix, skip_special=skip)
            return TextAnswer(assembler=assembler, form=form), form

        return Prompt(request=Request(prompt_ids=tuple(ids), params=params), begin=begin)

    def _params(
        self,
        ids: list[int],
        options: SamplingOptions,
        template: ChatTemplate | None = None,
        *,
        structured: bool = False,
    ) -> SamplingParams:
        """Sampling for a prompt: the model's defaults, the stops of its template, then the caller's options.

        With `ignore_eos` only the caller's own stops end the answer. A structured answer ends where its form does: a
        stop string of the template in it is a part of it. Stop ids that the model cannot generate are left out: the
        files of a model may name such, and so do clients that were written for another one.
        """
        room = max(1, self.engine.context_tokens - len(ids))
        if options.get("ignore_eos"):
            most = min(self.defaults.max_tokens, room)
            return self._ending(with_options(replace(self.defaults, max_tokens=most, stop_ids=()), options), template)
        stops = () if template is None or structured else template.stops
        stop_ids = [*self.defaults.stop_ids, *(() if template is None else template.stop_ids(self.tokenizer))]
        if self.tokenizer.eos_id is not None:
            stop_ids.append(self.tokenizer.eos_id)
        words = [stop for stop in stops if stop not in self.tokenizer.special_ids]
        given = with_options(SamplingParams(), {"stop": options["stop"]}).stop if "stop" in options else ()
        defaults = replace(
            self.defaults,
            max_tokens=min(self.defaults.max_tokens, room),
            stop_ids=tuple(stop_ids),
        )
        params = with_options(defaults, {**options, "stop": tuple(dict.fromkeys((*words, *given)))})
        return self._ending(params, template)

    def _ending(self, params: SamplingParams, template: ChatTemplate | None) -> SamplingParams:
        """A stop that is a special token's name ends the answer at that token, which is left out of the text.

        Functional tokens excepted in a chat: calls are written with them, or none of them may come.
        """
        functional = () if template is None or self.dialect is None else self.dialect.tokens
        special = self.tokenizer.special_ids
        named = (special[stop] for stop in params.stop if stop in special and stop not in functional)
        return replace(params, stop_ids=self._known((*params.stop_ids, *named)))

    def _known(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Each id once that the model can generate."""
        return tuple(token_id for token_id in dict.fromkeys(ids) if 0 <= token_id < self.engine.vocab_size)

    @cached_property
    def _desk(self) -> ToolDesk:
        template = () if self.template is None else self.template.stop_ids(self.tokenizer)
        return ToolDesk(
            self.tokenizer,
            self.template,
            self.dialect,
            num_ids=self.engine.vocab_size,
            stop_ids=self._known((*template, *self.defaults.stop_ids)),
        )

    def _need_template(self) -> ChatTemplate:
        if self.template is None:
            raise RequestError(
                f"{self.name} has no chat template: it is a base model",
                param="messages",
                code="no_chat_template",
                hint="continue a text instead (leveret generate), or put a chat_template.jinja beside the model",
            )
        return self.template


def _messages(messages: Messages) -> list[Message]:
    """The conversation as Messages; RequestError when it is empty or not a conversation."""
    if not messages:
        raise RequestError("the conversation has no messages", param="messages", code="invalid_value")
    if isinstance(messages, str | Mapping):  # a text is a list of its letters
        raise RequestError(
            f"messages is {str(messages)[:40]!r}, which is no list of messages",
            param="messages",
            code="invalid_value",
            hint='a message in a list is [{"role": "user", "content": "..."}]',
        )
    dicts = [each.to_dict() if isinstance(each, Message) else each for each in messages]
    conversation = messages_from(dicts)
    for index, message in enumerate(conversation):
        if message.role not in ROLES:
            raise RequestError(
                f"messages[{index}].role is {message.role!r}; it must be one of {', '.join(ROLES)}",
                param=f"messages[{index}].role",
                code="invalid_value",
            )
    return conversation


def _ids(prompt: Any) -> list[int]:
    """A prompt that is no text: token ids."""
    ids: list[Any] = (
        list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, bytes | Mapping) else [None]
    )
    if not all(issubclass(kind, Integral) for kind in set(map(type, ids))):
        raise RequestError(
            f"the prompt must be a text or a list of token ids, not {type(prompt).__name__}",
            param="prompt",
            code="invalid_value",
        )
    return ids


def _adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's files say that a text begins with BOS: their post-processor then adds it."""
    if tokenizer.bos_id is None:
        return False
    engine = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    return bool(engine.encode("", add_special_tokens=True).ids[:1] == [tokenizer.bos_id])
