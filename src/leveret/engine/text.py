"""TextModel: a model directory as a Python object that continues text, chats, streams and calls tools.

    model = leveret.load("runs/phone")
    model.generate("Once upon a time", max_tokens=40)
    model.chat([{"role": "user", "content": "Set a timer for five minutes"}], tools="all").tool_calls
    for piece in model.stream("Once upon a time"): print(piece, end="")

It joins three things that know nothing of each other: the tokenizer and the chat template (text to ids), the engine
(ids to ids), and the tool dialect. `prepare_text` and `prepare_chat` turn a prompt or a conversation into a `Job`, an
engine request with the answer that will come of it; everything else here, and the server, runs jobs.

Sampling options (`max_tokens`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`, `stop`,
`stop_ids`) go over the model's generation_config.json. The default max_tokens is cut to what the context has left; one
given by the caller is not, and is an error when it does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import tokenizers
import torch

from leveret.chat.messages import Message, ToolCall, checked_text, messages_from
from leveret.chat.template import ChatTemplate
from leveret.engine.assembler import TextAssembler
from leveret.engine.backend import Backend
from leveret.engine.backends.names import OWN, checked_name
from leveret.engine.backends.opening import open_parts
from leveret.engine.config import EngineConfig
from leveret.engine.defaults import SamplingOptions, with_options
from leveret.engine.engine import Engine
from leveret.engine.prompting import USUAL, PromptShape, chat_ids, find_parts
from leveret.engine.reply import Answer, Delta, Reply, TextAnswer, reply_from
from leveret.engine.request import Completion, Request, SamplingParams
from leveret.engine.row import Row
from leveret.engine.structure import AnswerOptions, Structure, split_options
from leveret.engine.tool_calls import OfferedTools, ToolChoice, last_query
from leveret.engine.tool_desk import ToolDesk
from leveret.engine.tool_offer import offer_from
from leveret.errors import ConfigError, RequestError
from leveret.hub import model_under, resolve_model
from leveret.model.decoder import Decoder
from leveret.tokenizer.files import Tokenizer
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import ToolSet
from leveret.weights.load import load_model

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


class TextModel:
    """A decoder with its tokenizer, chat template and tools; made by `leveret.load`."""

    def __init__(
        self,
        model: Decoder | Backend,
        tokenizer: Tokenizer,
        *,
        template: ChatTemplate | None = None,
        tools: ToolSet | None = None,
        defaults: SamplingParams | None = None,
        name: str = "leveret",
        engine: EngineConfig | None = None,
    ) -> None:
        """Parts that belong together; `load` finds them in a directory. A Decoder runs in an engine of its own."""
        self._decoder = model.model if isinstance(model, Engine) else model if isinstance(model, Decoder) else None
        self.engine: Backend = model if isinstance(model, Backend) else Engine(model, engine)
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

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: str = "cpu",
        adapter: str | Path | None = None,
        quantize: str | None = None,
        backend: str = OWN,
        engine: EngineConfig | None = None,
    ) -> TextModel:
        """Load a model directory, or a model of the Hugging Face hub by name.

        Args:
            path: the directory or the name.
            dtype: type of the weights in memory ("float32", torch.bfloat16 ...); None as stored.
            device: "cpu", "cuda:0" ...
            adapter: a folder with an adapter for this model. As `path`, such a folder brings the model it names.
            quantize: "int8", "int4" or "nf4": what the matrices are rounded to as they are loaded; None as stored.
            backend: "leveret"; "transformers"; "llama.cpp" (path: a GGUF file); or the URL of a server that has the
                model, of which then only tokenizer, template and defaults are read here.
            engine: how our own engine works; None: the defaults of `EngineConfig`.
        Raises HubError, WeightsError, TokenizerError, TemplateError or ToolError, naming the file that is wrong.
        """
        if checked_name(backend) != OWN:
            if adapter is not None or quantize is not None:
                raise ConfigError(
                    "an adapter, or quantizing at load, is for our own engine",
                    hint="merge the adapter first (leveret export), or quantize first (leveret quantize)",
                )
            if engine not in (None, EngineConfig()):
                raise ConfigError(f"the engine keys are for our own engine, and the backend is {backend}")
            return cls(**vars(open_parts(path, backend, dtype=dtype, device=device)))
        directory = resolve_model(str(path))
        top = directory if adapter is None else resolve_model(str(adapter))
        return cls(
            load_model(
                directory, dtype=dtype, device=device, adapter=None if adapter is None else top, quantize=quantize
            ),
            **vars(find_parts((top, model_under(directory)))),
            name=top.resolve().name,
            engine=engine,
        )

    @property
    def model(self) -> Decoder:
        """Called with token ids (B, T) it gives logits (B, T, V). RequestError when another program has the model."""
        if self._decoder is None:
            raise RequestError(
                f"{self.name} is run by another program (backend): there are no weights here to compute this with",
                code="unsupported",
                hint="run it with backend=leveret",
            )
        return self._decoder

    def generate(self, prompt: str, **options: Unpack[AnswerOptions]) -> str:
        """The continuation of a text, without the text. Raises RequestError when the request cannot be served."""
        return self._run(self.prepare_text(prompt, **options)).content

    def predict(
        self,
        text: str,
        *,
        history: Messages = (),
        system: str | None = None,
        base: bool | None = None,
        **options: Unpack[AnswerOptions],
    ) -> str:
        """The answer to one message after what was said before (`history`, oldest first, which is not changed).

        base: True continues the text instead; None does so for a model without a chat template.
        """
        if self.template is None if base is None else base:
            return self.generate(text, **options)
        leading = [] if system is None else [Message("system", system)]
        return self.chat([*leading, *history, Message("user", text)], **options).content

    def chat(
        self,
        messages: Messages,
        *,
        tools: OfferedTools = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        constrained: bool = True,
        **options: Unpack[AnswerOptions],
    ) -> Reply:
        """The assistant's next turn.

        Args:
            messages: the conversation so far.
            tools: "all", or names or OpenAI declarations of the tools that may be called; None for plain text.
            tool_choice: "required" leaves the model no way not to call.
            parallel_tool_calls: False ends the answer after one call.
            constrained: False lets the model write what it likes where it should write calls.
            options: sampling options.
        Raises RequestError when the request cannot be served.
        """
        return self._run(
            self.prepare_chat(
                messages,
                tools=tools,
                tool_choice=tool_choice,
                parallel_tool_calls=parallel_tool_calls,
                constrained=constrained,
                **options,
            )
        )

    def stream(self, prompt: str | Messages, **options: Unpack[AnswerOptions]) -> Iterator[str]:
        """The text of `generate` (for a string) or of `chat` without tools (for messages), piece by piece.

        Pieces never split a character, and together they are the whole text.
        """
        job = self.prepare_text(prompt, **options) if isinstance(prompt, str) else self.prepare_chat(prompt, **options)
        return (delta.content for delta in self.deltas(job) if delta.content)

    def stream_chat(
        self,
        messages: Messages,
        *,
        tools: OfferedTools = None,
        tool_choice: ToolChoice = "auto",
        **options: Unpack[AnswerOptions],
    ) -> Iterator[Delta]:
        """The reply of `chat` piece by piece: text, tool calls as they become complete, then reason and usage."""
        return self.deltas(self.prepare_chat(messages, tools=tools, tool_choice=tool_choice, **options))

    def call_tools(
        self,
        queries: Sequence[str],
        *,
        tools: OfferedTools = "all",
        constrained: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> list[list[ToolCall] | None]:
        """The calls that answer each query, all queries batched; [] where no tool fits, None where nothing parses.

        A constrained answer parses unless max_tokens cuts it off.
        """
        jobs = [
            self.prepare_chat([Message(role="user", content=query)], tools=tools, constrained=constrained, **options)
            for query in queries
        ]
        replies = self.run(jobs)
        return [list(reply.tool_calls) if reply.parsed else None for reply in replies]

    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """The replies to jobs, batched, in order."""
        completions = self.engine.generate([job.request for job in jobs])
        return [_whole(job.answer, completion) for job, completion in zip(jobs, completions, strict=True)]

    def deltas(self, job: Job) -> Iterator[Delta]:
        """The reply to one job, piece by piece. Raises RequestError at once when it cannot be served."""
        return _pieces(self.engine.follow(job.request), job.answer)

    def prepare_text(self, prompt: str | Sequence[int], **options: Unpack[AnswerOptions]) -> Job:
        """A job that continues a text or token ids. A text gets a BOS if the tokenizer's files say so."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(checked_text(prompt, "prompt"), add_bos=self._adds_bos)
        else:
            ids = list(prompt)
        structure, sampling = split_options(options)
        return self._text_job(ids, self._params(ids, sampling), structure=structure)

    def prepare_chat(
        self,
        messages: Messages,
        *,
        tools: OfferedTools = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        constrained: bool = True,
        shape: PromptShape = USUAL,
        **options: Unpack[AnswerOptions],
    ) -> Job:
        """A job for the assistant's next turn; the arguments are those of `chat`, and where the prompt ends."""
        template = self._need_template()
        offer = offer_from(tools, self.tools, tool_choice=tool_choice, parallel=parallel_tool_calls)
        conversation = _messages(messages)
        shown, entries = self._desk.shown(offer, conversation)
        ids = chat_ids(template, self.tokenizer, shown, shape=shape, tools=entries)
        structure, sampling = split_options(options)
        params = self._params(ids, sampling, template, structured=structure is not None)
        prefix = template.reply_prefix if shape == USUAL else ""
        if offer.empty:
            params = replace(params, banned_ids=(*params.banned_ids, *self._desk.silent_ids()))
            return self._text_job(ids, params, prefix=prefix, structure=structure)
        answer, constraint = self._desk.answer(
            offer, params, query=last_query(conversation), prefix=prefix, form=structure, constrained=constrained
        )
        return Job(
            request=Request(prompt_ids=tuple(ids), params=params, constraint=constraint, watch=answer.watch),
            answer=answer,
        )

    def _text_job(
        self, ids: list[int], params: SamplingParams, *, prefix: str = "", structure: Structure | None = None
    ) -> Job:
        form = None if structure is None else self._desk.grammars.constraint(structure, params.stop_ids, prefix=prefix)
        skip = params.skip_special_tokens
        assembler = TextAssembler(self.tokenizer, params.stop, prefix=prefix, skip_special=skip)
        answer = TextAnswer(assembler=assembler, form=form)
        prompt = tuple(ids)
        request = Request(prompt_ids=prompt, params=params, constraint=form, watch=answer.watch, record=answer.record)
        return Job(request=request, answer=answer)

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
        stop string of the template in it is a part of it.
        """
        room = max(1, self.engine.context_tokens - len(ids))
        if options.get("ignore_eos"):
            most = min(self.defaults.max_tokens, room)
            return with_options(replace(self.defaults, max_tokens=most, stop_ids=()), options)
        stops = () if template is None or structured else template.stops
        stop_ids = [*self.defaults.stop_ids, *(() if template is None else template.stop_ids(self.tokenizer))]
        if self.tokenizer.eos_id is not None:
            stop_ids.append(self.tokenizer.eos_id)
        given = options.get("stop", ())
        words = [stop for stop in stops if stop not in self.tokenizer.special_ids]
        words += [given] if isinstance(given, str) else given
        defaults = replace(
            self.defaults,
            max_tokens=min(self.defaults.max_tokens, room),
            stop_ids=tuple(dict.fromkeys(stop_ids)),
        )
        return with_options(defaults, {**options, "stop": tuple(dict.fromkeys(words))})

    @cached_property
    def _desk(self) -> ToolDesk:
        template = () if self.template is None else self.template.stop_ids(self.tokenizer)
        return ToolDesk(
            self.tokenizer,
            self.template,
            self.dialect,
            num_ids=self.engine.vocab_size,
            stop_ids=(*template, *self.defaults.stop_ids),
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

    def _run(self, job: Job) -> Reply:
        return self.run([job])[0]


def _whole(answer: Answer, completion: Completion) -> Reply:
    return reply_from([*answer.drain(), *answer.finish(completion)], parsed=answer.parsed)


def _pieces(rows: Iterator[Row], answer: Answer) -> Iterator[Delta]:
    for row in rows:
        yield from answer.drain()
        if row.finish_reason is not None:
            yield from answer.finish(row.completion())


def _messages(messages: Messages) -> list[Message]:
    """The conversation as Messages; RequestError when it is empty or not a conversation."""
    if not messages:
        raise RequestError("the conversation has no messages", param="messages", code="invalid_value")
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


def _adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's files say that a text begins with BOS: their post-processor then adds it."""
    if tokenizer.bos_id is None:
        return False
    engine = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    return bool(engine.encode("", add_special_tokens=True).ids[:1] == [tokenizer.bos_id])
