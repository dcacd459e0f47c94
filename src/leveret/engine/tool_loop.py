"""The loop of a model that acts: it asks for calls, they are run, it is told what came of them, until it asks for none.

    talk = Conversation(model=model, tools=True, offered=sandbox.declarations)
    loop = ToolLoop(sandbox, confirm=lambda call: input(f"{call.name}? ") == "y")
    loop.reply(talk, "What is 12 * 34, and mail it to Ann").content

Whatever goes wrong in a call is told to the model as text, and so is a call that the person does not allow. The loop
ends when the model answers without calls, after `max_rounds`, or when it asks for exactly what it has just been told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, Unpack

from leveret.chat.messages import ToolCall
from leveret.engine.conversation import Conversation
from leveret.engine.defaults import SamplingOptions
from leveret.engine.reply import Reply
from leveret.tools.sandbox import Outcome

NOT_ALLOWED = Outcome(text="not done: the person did not allow this call", failed=True)
"""What a call comes to that the person refuses."""

STOPPED = Outcome(text="not finished: the person stopped it", failed=True)
"""What a call comes to that is interrupted by Ctrl-C."""


class Runner(Protocol):
    """What runs calls: a `Sandbox`, a `DryRun`, or your own."""

    def is_act(self, call: ToolCall) -> bool:
        """Whether the person is to be asked first."""

    def run(self, call: ToolCall) -> Outcome:
        """What came of the call; it raises nothing."""


class ToolLoop:
    """Runs what a model asks for, within bounds."""

    def __init__(self, runner: Runner, *, confirm: Callable[[ToolCall], bool], max_rounds: int = 5) -> None:
        """
        Args:
            runner: runs calls.
            confirm: asked before a call that is an act; False refuses it.
            max_rounds: most answers to one question, the last one included.
        """
        self._runner = runner
        self._confirm = confirm
        self._max_rounds = max_rounds
        self._rounds = 0
        self._before: tuple[ToolCall, ...] = ()

    def begin(self) -> None:
        """A new question."""
        self._rounds, self._before = 0, ()

    def feed_back(self, talk: Conversation, calls: Sequence[ToolCall]) -> Iterator[tuple[ToolCall, Outcome]]:
        """Run the calls of an answer that was recorded, and put their results into the conversation, one by one."""
        for call in calls:
            refused = self._runner.is_act(call) and not self._confirm(call)
            try:
                outcome = NOT_ALLOWED if refused else self._runner.run(call)
            except KeyboardInterrupt:
                outcome = STOPPED
            talk.record_result(call, f"error: {outcome.text}" if outcome.failed else outcome.text)
            yield call, outcome

    def goes_on(self, calls: Sequence[ToolCall]) -> bool:
        """Whether the model is to be asked again after an answer with these calls."""
        self._rounds += 1
        asked, self._before = self._before, tuple(calls)
        return bool(calls) and self._rounds < self._max_rounds and asked != self._before

    def reply(self, talk: Conversation, text: str, **options: Unpack[SamplingOptions]) -> Reply:
        """Ask, and go on until the last answer, which is returned; the conversation holds them all.

        A question that cannot be answered to its end is taken back, with all that came of it.
        """
        self.begin()
        talk.ask(text)
        try:
            return self._last_answer(talk, options)
        except BaseException:
            talk.take_back_answer()
            talk.take_back_question()
            raise

    def _last_answer(self, talk: Conversation, options: SamplingOptions) -> Reply:
        while True:
            reply = talk.model.run([talk.prepare(**options)])[0]
            talk.record(reply.content, reply.tool_calls)
            list(self.feed_back(talk, reply.tool_calls))
            if not self.goes_on(reply.tool_calls):
                return reply
