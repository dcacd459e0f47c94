"""Conversation: what was said so far, and the job for the next answer; terminal and web page share it.

    talk = Conversation(model, system="Be brief.")
    talk.ask("Hello")
    for delta in model.deltas(talk.prepare(max_tokens=40)): print(delta.content, end="")
    talk.record(...)                                   # or  talk.reply("Hello") , which does all of it

One conversation belongs to one person: nothing in it is shared but the model. When it has outgrown the model's context
its oldest turns are forgotten for good, question and answer together, and `forgotten` counts them; the system message
stays. A model without a chat template, or with `base`, continues what was written instead of answering it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from leveret.chat.messages import Message, ToolCall, messages_from
from leveret.engine.defaults import SamplingOptions
from leveret.engine.jobs import Job
from leveret.engine.reply import Reply
from leveret.engine.text import TextModel
from leveret.engine.tool_calls import OfferedTools
from leveret.errors import RequestError
from leveret.paths import atomic_write


@dataclass(kw_only=True)
class Conversation:
    """The turns of one person with one model."""

    model: TextModel
    system: str | None = None
    """The system message; None for that of the chat template."""
    tools: bool = False
    """Whether the model may call tools."""
    offered: OfferedTools = "all"
    """Which ones, if it may: by default all that it has a token for."""
    base: bool = False
    """Continue the text instead of answering it."""
    remember: bool = True
    """Show the model all turns, not the last question only."""
    turns: list[Message] = field(default_factory=list)
    """Alternately the user's and the assistant's; the system message is not among them."""
    forgotten: int = 0
    """Turns forgotten so far because the context was full."""

    def ask(self, text: str) -> None:
        """The user's next message."""
        self.turns.append(Message("user", text))

    def record(self, content: str, calls: Sequence[ToolCall] = ()) -> None:
        """What was answered."""
        self.turns.append(Message("assistant", content, tool_calls=tuple(calls)))

    def record_result(self, call: ToolCall, text: str) -> None:
        """What a call came to, for the model to read before it goes on."""
        self.turns.append(Message("tool", text, tool_call_id=call.id, name=call.name))

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.turns.clear()

    def take_back_answer(self) -> bool:
        """Make the last question the open one again; False when nothing was asked."""
        while self.turns and self.turns[-1].role != "user":
            self.turns.pop()
        return bool(self.turns)

    def take_back_question(self) -> str | None:
        """Take back the open question, which was not answered; its text."""
        return self.turns.pop().content if self.turns and self.turns[-1].role == "user" else None

    def prepare(self, **options: Unpack[SamplingOptions]) -> Job:
        """The job for the answer to the open question. Raises RequestError, also when the question alone is too long.

        Turns are forgotten only for a job that then fits; they also are when, with no max_tokens given, less than a
        quarter of the context would be left to answer in.
        """
        dropped = 0
        while True:
            job = self._job_or_refusal(dropped, options)
            later = self._next_question(dropped) if self.remember else None
            if isinstance(job, RequestError):
                if later is None or job.code != "context_length_exceeded":
                    raise job
            elif later is None or "max_tokens" in options or not self._is_cramped(job):
                del self.turns[:dropped]
                self.forgotten += dropped
                return job
            assert later is not None
            dropped = later

    def reply(self, text: str, **options: Unpack[SamplingOptions]) -> Reply:
        """Ask, wait for the whole answer, record it. A question that cannot be answered is taken back."""
        self.ask(text)
        try:
            reply = self.model.run([self.prepare(**options)])[0]
        except BaseException:
            self.take_back_question()
            raise
        self.record(reply.content, reply.tool_calls)
        return reply

    def save(self, path: str | Path) -> None:
        """Write it as one line of JSON, which `leveret finetune` can learn from as it is."""
        line = {"messages": [message.to_dict() for message in _with_system(self.system, self.turns)]}
        atomic_write(path, json.dumps(line, ensure_ascii=False) + "\n")

    def load(self, path: str | Path) -> None:
        """Go on with a conversation from the first line of a file. RequestError, and no change, if it holds none."""
        try:
            line = Path(path).read_text(encoding="utf-8-sig").lstrip().partition("\n")[0]
            messages = messages_from(json.loads(line)["messages"])
        except (OSError, ValueError, KeyError, TypeError, RequestError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise RequestError(
                f"{path} holds no conversation: {reason}",
                hint='its first line is to be {"messages": [{"role": ..., "content": ...}, ...]}',
            ) from None
        leading = messages[:1] if messages and messages[0].role == "system" else []
        self.system = leading[0].content if leading else None
        self.turns = messages[len(leading) :]

    def _job(self, dropped: int, options: SamplingOptions) -> Job:
        shown = self.turns[dropped if self.remember else self._last_question() :]
        if self.base:
            return self.model.prepare_text("".join(message.content for message in shown), **options)
        tools = self.offered if self.tools else None
        return self.model.prepare_chat(_with_system(self.system, shown), tools=tools, **options)

    def _last_question(self) -> int:
        places = range(len(self.turns))
        return next((place for place in reversed(places) if self.turns[place].role == "user"), 0)

    def _job_or_refusal(self, dropped: int, options: SamplingOptions) -> Job | RequestError:
        try:
            job = self._job(dropped, options)
        except RequestError as error:
            return error
        return self._refusal(job) or job

    def _refusal(self, job: Job) -> RequestError | None:
        try:
            self.model.engine.check(job.request)
        except RequestError as error:
            return error
        return None

    def _is_cramped(self, job: Job) -> bool:
        """Whether the answer is held shorter than the model's own max_tokens by a context that is nearly full."""
        wanted = min(self.model.defaults.max_tokens, self.model.engine.context_tokens // 4)
        return job.request.params.max_tokens < wanted

    def _next_question(self, after: int) -> int | None:
        """Where the next question after turn `after` stands: the turns before it may be forgotten."""
        places = range(after + 1, len(self.turns))
        return next((place for place in places if self.turns[place].role == "user"), None)


def _with_system(system: str | None, turns: Sequence[Message]) -> list[Message]:
    return [*([] if system is None else [Message("system", system)]), *turns]
