"""TextModel: a model directory as a Python object that continues text, chats, streams and calls tools.

    model = leveret.load("runs/phone")
    model.generate("Once upon a time", max_tokens=40)
    model.chat([{"role": "user", "content": "Set a timer for five minutes"}], tools="all").tool_calls
    for piece in model.stream("Once upon a time"): print(piece, end="")

It joins three things that know nothing of each other: the tokenizer and the chat template (text to ids), the engine
(ids to ids), and the tool dialect. `prepare_text` and `prepare_chat` (jobs.py) turn a prompt or a conversation into a
`Job`, an engine request with the answer that will come of it; everything here, and the server, runs jobs.

Sampling options (`max_tokens`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`, `stop`,
`stop_ids`) go over the model's generation_config.json. The default max_tokens is cut to what the context has left; one
given by the caller is not, and is an error when it does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from leveret.chat.messages import Message, ToolCall
from leveret.chat.template import ChatTemplate
from leveret.config import parse_config
from leveret.engine.backend import Backend
from leveret.engine.backends.names import OWN, check_keys, checked_name
from leveret.engine.backends.opening import open_parts
from leveret.engine.beside import Beside
from leveret.engine.config import EngineConfig
from leveret.engine.defaults import SamplingOptions
from leveret.engine.engine import Engine
from leveret.engine.jobs import Job, JobMaker, Messages
from leveret.engine.prompting import find_parts
from leveret.engine.reply import Answer, Delta, Reply, reply_from
from leveret.engine.request import Completion, SamplingParams
from leveret.engine.row import Row
from leveret.engine.structure import AnswerOptions
from leveret.engine.tool_calls import OfferedTools, ToolChoice
from leveret.errors import ConfigError, RequestError
from leveret.hub import model_under, name_of, resolve_model
from leveret.model.decoder import Decoder
from leveret.tokenizer.files import Tokenizer
from leveret.tools.schema import ToolSet
from leveret.weights.load import load_model


class TextModel(JobMaker):
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
        backend: Backend = model if isinstance(model, Backend) else Engine(model, engine)
        super().__init__(backend, tokenizer, template=template, tools=tools, defaults=defaults, name=name)
        self._decoder = backend.model if isinstance(backend, Engine | Beside) else None

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
        engine: EngineConfig | Mapping[str, Any] | None = None,
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
            engine: how our own engine works, or keys of `EngineConfig` with values; None: its defaults.
        Raises HubError, WeightsError, TokenizerError, TemplateError or ToolError, naming the file that is wrong.
        """
        if isinstance(engine, Mapping):
            engine = parse_config(EngineConfig, dict(engine), source="engine")
        try:
            is_own = checked_name(backend) == OWN
            check_keys(backend, engine=engine, dtype=dtype, device=device)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not is_own:
            if adapter is not None or quantize is not None:
                raise ConfigError(
                    "an adapter, or quantizing at load, is for our own engine",
                    hint="merge the adapter first (leveret export), or quantize first (leveret quantize)",
                )
            return cls(**vars(open_parts(path, backend, dtype=dtype, device=device)))
        directory = resolve_model(str(path))
        top = directory if adapter is None else resolve_model(str(adapter))
        return cls(
            load_model(
                directory, dtype=dtype, device=device, adapter=None if adapter is None else top, quantize=quantize
            ),
            **vars(find_parts((top, model_under(directory)))),
            name=name_of(top),
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
        history: Messages | None = None,
        system: str | None = None,
        base: bool | None = None,
        **options: Unpack[AnswerOptions],
    ) -> str:
        """The answer to one message after what was said before (`history`, oldest first, which is not changed).

        base: True continues the text instead, which has no history; None does so for a model without a chat template.
        """
        if self.template is None if base is None else base:
            if history or system is not None:
                raise RequestError(
                    "history and system are of a conversation, and the text is continued as a base model does",
                    param="history" if history else "system",
                    code="invalid_value",
                )
            return self.generate(text, **options)
        leading = [] if system is None else [Message("system", system)]
        return self.chat([*leading, *(history or ()), Message("user", text)], **options).content

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
            tools: "all", or names or OpenAI declarations of the tools that may be called, or a ToolSet; None for plain
                text.
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
        if isinstance(queries, str):  # a text is a sequence of texts too: its characters
            raise RequestError(
                "call_tools answers a list of requests, and was given one text", hint="call_tools([text])"
            )
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

    def _run(self, job: Job) -> Reply:
        return self.run([job])[0]


def _whole(answer: Answer, completion: Completion) -> Reply:
    return reply_from([*answer.drain(), *answer.finish(completion)], parsed=answer.parsed)


def _pieces(rows: Iterator[Row], answer: Answer) -> Iterator[Delta]:
    for row in rows:
        yield from answer.drain()
        if row.finish_reason is not None:
            yield from answer.finish(row.completion())
