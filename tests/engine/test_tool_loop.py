"""The loop of calls: run, fed back, bounded; acts only with a yes; errors told as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leveret.chat.messages import ToolCall
from leveret.chat.template import template_for
from leveret.engine.conversation import Conversation
from leveret.engine.reply import Reply, Usage
from leveret.engine.text import TextModel
from leveret.engine.tool_loop import NOT_ALLOWED, ToolLoop
from leveret.tokenizer.files import Tokenizer
from leveret.tools.dry_run import DryRun
from leveret.tools.sandbox import Outcome, Sandbox

from .conftest import random_decoder, tiny_config

FILE = '''
from leveret.tools.act import act

def add(a: int, b: int) -> int:
    """Adds."""
    return a + b

@act
def mail(to: str) -> str:
    """Mails."""
    return "sent to " + to
'''


class Scripted:
    """A model that says what it is told to, and remembers what it was shown."""

    def __init__(self, *answers: list[ToolCall] | str) -> None:
        self._answers = list(answers)
        self.shown: list[list[tuple[str, str]]] = []

    def prepare_chat(self, messages: list[Any], **options: Any) -> Any:
        self.shown.append([(message.role, message.content) for message in messages])
        return _Job()

    def run(self, jobs: list[Any]) -> list[Reply]:
        answer = self._answers.pop(0)
        calls, text = ((), answer) if isinstance(answer, str) else (tuple(answer), "")
        return [
            Reply(
                content=text, tool_calls=calls, finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=1)
            )
        ]

    engine: Any = None


class _Job:
    request = None


class Runner:
    """Counts what it runs; `mail` is an act."""

    def __init__(self) -> None:
        self.run_calls: list[str] = []

    def is_act(self, call: ToolCall) -> bool:
        return call.name == "mail"

    def run(self, call: ToolCall) -> Outcome:
        self.run_calls.append(call.name)
        return Outcome(text="boom", failed=True) if call.name == "bad" else Outcome(text=f"{call.name} done")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted model has no engine to ask whether a prompt fits."""
    monkeypatch.setattr(Conversation, "_refusal", lambda self, job: None)
    monkeypatch.setattr(Conversation, "_is_cramped", lambda self, job: False)


@pytest.fixture
def talk_of(unchecked: None) -> Any:
    def build(*answers: list[ToolCall] | str, remember: bool = True) -> tuple[Scripted, Conversation]:
        model = Scripted(*answers)
        return model, Conversation(model=model, tools=True, remember=remember)  # type: ignore[arg-type]

    return build


@pytest.mark.parametrize("remember", [True, False])
def test_results_and_errors_are_fed_back_until_the_model_calls_nothing(talk_of: Any, remember: bool) -> None:
    model, talk = talk_of([ToolCall("add", {}), ToolCall("bad", {})], [ToolCall("add", {})], "Five.", remember=remember)
    runner = Runner()
    reply = ToolLoop(runner, confirm=lambda call: True).reply(talk, "2 + 3?")
    assert reply.content == "Five." and runner.run_calls == ["add", "bad", "add"]
    assert [role for role, _ in model.shown[-1]] == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    assert ("tool", "error: boom") in model.shown[1] and ("tool", "add done") in model.shown[1]
    assert [message.role for message in talk.turns][-1] == "assistant"


def test_an_act_needs_a_yes_and_a_refusal_is_told(talk_of: Any) -> None:
    for allowed in (True, False):
        model, talk = talk_of([ToolCall("mail", {})], "ok")
        runner, asked = Runner(), []
        ToolLoop(runner, confirm=lambda call: asked.append(call.name) or allowed).reply(talk, "mail")  # noqa: B023
        assert asked == ["mail"] and runner.run_calls == (["mail"] if allowed else [])
        assert (("tool", f"error: {NOT_ALLOWED.text}") in model.shown[1]) is not allowed


def test_a_question_that_fails_on_the_way_is_taken_back(talk_of: Any) -> None:
    _, talk = talk_of("Hi.", [ToolCall("add", {})])
    loop = ToolLoop(Runner(), confirm=lambda call: True)
    loop.reply(talk, "hello")
    before = list(talk.turns)
    with pytest.raises(IndexError):  # the scripted model has nothing more to say
        loop.reply(talk, "2 + 3?")
    assert talk.turns == before


def test_ctrl_c_ends_a_call_and_not_the_loop(talk_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(call: ToolCall) -> Outcome:
        raise KeyboardInterrupt

    model, talk = talk_of([ToolCall("add", {})], "ok")
    runner = Runner()
    monkeypatch.setattr(runner, "run", interrupted)
    assert ToolLoop(runner, confirm=lambda call: True).reply(talk, "go").content == "ok"
    assert ("tool", "error: not finished: the person stopped it") in model.shown[1]


def test_rounds_are_bounded_and_the_same_calls_again_end_the_loop(talk_of: Any) -> None:
    calls = [[ToolCall("add", {"a": number})] for number in range(9)]
    _, talk = talk_of(*calls)
    runner = Runner()
    reply = ToolLoop(runner, confirm=lambda call: True, max_rounds=3).reply(talk, "go")
    assert len(runner.run_calls) == 3 and reply.tool_calls == (ToolCall("add", {"a": 2}),)
    _, again = talk_of([ToolCall("add", {"a": 1})], [ToolCall("add", {"a": 1})], "never")
    repeated = ToolLoop(runner, confirm=lambda call: True).reply(again, "go")
    assert repeated.tool_calls and [turn.role for turn in again.turns][-1] == "tool"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    file: Path = tmp_path_factory.mktemp("tools") / "mine.py"
    file.write_text(FILE)
    with Sandbox(file) as sandbox:
        yield sandbox


def test_a_real_model_calls_real_functions(tokenizer: Tokenizer, sandbox: Sandbox) -> None:
    decoder = random_decoder(tiny_config(tokenizer.vocab_size, max_position_embeddings=2000))
    model = TextModel(decoder, tokenizer, template=template_for(tokenizer))
    talk = Conversation(model=model, tools=True, offered=sandbox.declarations)
    job = model.prepare_chat(
        [{"role": "user", "content": "2 + 3?"}], tools=sandbox.declarations, tool_choice="required", max_tokens=120
    )
    assert job.request.constraint is not None
    ToolLoop(sandbox, confirm=lambda call: False, max_rounds=2).reply(talk, "2 + 3?", max_tokens=20)
    assert talk.turns[0].content == "2 + 3?" and talk.turns[1].role == "assistant"
    assert json.loads(sandbox.run(ToolCall("add", {"a": 2, "b": 3})).text) == 5


def test_a_dry_run_says_what_a_phone_would_do_and_does_nothing() -> None:
    dry = DryRun()
    timer = dry.run(ToolCall("set_timer", {"minutes": 5}))
    assert "nothing was sent: adb shell am start" in timer.text and not timer.failed
    assert "no Android plan" in dry.run(ToolCall("my_own", {})).text and not dry.is_act(ToolCall("send_email", {}))
    torch_light = dry.run(ToolCall("toggle_setting", {"setting": "flashlight", "on": True}))
    assert torch_light.text.startswith("dry run: no intent")
