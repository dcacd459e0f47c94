"""`leveret chat tools=FILE`: functions that run, declarations that are shown, acts that are asked about."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from leveret.chat.messages import ToolCall
from leveret.cli.chat_config import ChatConfig
from leveret.cli.chat_session import Session
from leveret.cli.chat_tools import ChatTools, TerminalLoop, chat_tools, list_tools
from leveret.config import parse_config
from leveret.console import Console
from leveret.engine.conversation import Conversation
from leveret.errors import ConfigError, ToolError
from leveret.tools.dry_run import DryRun
from leveret.tools.sandbox import Outcome

FILE = '''
from leveret.tools.act import act

@act
def mail(to: str) -> str:
    """Mails."""
    return "sent to " + to
'''


class Yes(io.StringIO):
    """A standard input on which somebody types."""

    def isatty(self) -> bool:
        return True


class Acts:
    """Everything is an act."""

    def __init__(self) -> None:
        self.ran = 0

    def is_act(self, call: ToolCall) -> bool:
        return True

    def run(self, call: ToolCall) -> Outcome:
        self.ran += 1
        return Outcome(text="sent")


def go(loop: TerminalLoop, number: int = 1) -> tuple[bool, list[str]]:
    """One round; whether there is another, and the results the model is told."""
    talk = Conversation(model=None)  # type: ignore[arg-type]
    talk.ask("mail Ann")
    more = loop.goes_on(talk, [ToolCall("mail", {"to": f"Ann {number}"})])
    return more, [message.content for message in talk.turns if message.role == "tool"]


def loop_with(monkeypatch: pytest.MonkeyPatch, typed: str, **keys: object) -> tuple[TerminalLoop, Acts]:
    runner = Acts()
    monkeypatch.setattr("sys.stdin", Yes(typed))
    return TerminalLoop(ChatTools(runner=runner, max_rounds=5, runs=True, **keys), Console()), runner


@pytest.mark.parametrize(("typed", "ran"), [("y\n", 1), ("n\n", 0), ("what?\nyes\n", 1), ("", 0)])
def test_an_act_is_run_after_a_yes_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, ran: int
) -> None:
    loop, runner = loop_with(monkeypatch, typed)
    more, told = go(loop)
    assert more and runner.ran == ran
    assert told == ["sent" if ran else "error: not done: the person did not allow this call"]
    assert 'run mail(to="Ann 1")?' in capsys.readouterr().out


def test_always_is_asked_once_and_allowed_acts_are_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, runner = loop_with(monkeypatch, "always\n")
    go(loop, 1), go(loop, 2)
    assert runner.ran == 2
    loop, runner = loop_with(monkeypatch, "", allowed=("mail",))
    go(loop)
    assert runner.ran == 1


def test_an_act_in_a_pipe_is_refused_and_the_key_that_would_allow_it_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, runner = loop_with(monkeypatch, "")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    go(loop)
    assert runner.ran == 0 and "allow=[mail]" in capsys.readouterr().err


def test_a_dry_run_is_not_fed_back_unless_rounds_are_asked_for() -> None:
    call = [ToolCall("set_timer", {"minutes": 5})]
    talk = Conversation(model=None)  # type: ignore[arg-type]
    assert not TerminalLoop(ChatTools(runner=DryRun()), Console()).goes_on(talk, call) and not talk.turns
    assert TerminalLoop(ChatTools(runner=DryRun(), max_rounds=2), Console()).goes_on(talk, call)
    assert "nothing was sent" in talk.turns[0].content


def test_a_python_file_runs_and_a_json_file_is_only_declared(tmp_path: Path) -> None:
    python, declared = tmp_path / "mine.py", tmp_path / "mine.json"
    python.write_text(FILE)
    declared.write_text('{"tools": [{"name": "f", "description": "F", "inputSchema": {"properties": {"x": {}}}}]}')
    with chat_tools(ChatConfig(model="m", tools=python, allow=["mail"]), Console()) as tools:
        assert tools.runs and tools.max_rounds == 5 and tools.allowed == ("mail",)
        assert list_tools(tools.offered, None) == ["mail(to)  Mails."]
        assert tools.runner.run(ToolCall("mail", {"to": "Ann"})).text == "sent to Ann"
        assert tools.describe(ToolCall("set_timer", {"minutes": 5})) == "set_timer(minutes=5)"
    with chat_tools(ChatConfig(model="m", tools=declared), Console()) as tools:
        assert not tools.runs and tools.max_rounds == 1 and list_tools(tools.offered, None) == ["f(x)  F"]
    with pytest.raises(ToolError, match="does not exist"), chat_tools(ChatConfig(model="m", tools="no.py"), Console()):
        pass
    with pytest.raises(ConfigError, match="neither a Python file"):
        parse_config(ChatConfig, {"model": "m", "tools": "tools.txt"}, source="test")


def test_a_session_answers_a_question_in_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The session is driven with a model that calls once and then says what it was told."""
    shown: list[list[str]] = []

    class Model:
        tools = None
        template = object()

        def prepare_chat(self, messages: list, **keys: object) -> list[str]:
            shown.append([getattr(message, "content", "") for message in messages])
            return shown[-1]

    monkeypatch.setattr(Conversation, "prepare", lambda talk, **options: talk._job(0, {}))
    answers = [[ToolCall("mail", {"to": "Ann"})], []]
    monkeypatch.setattr(
        Session, "_stream", lambda self, job: ("" if answers[0] else f"I read {job[-1]}", answers.pop(0), True)
    )
    runner = Acts()
    offer = ChatTools(offered=[], runner=runner, max_rounds=5, allowed=("mail",), runs=True)
    session = Session(Model(), ChatConfig(model="m", tools=True), Console(), offer)  # type: ignore[arg-type]
    session.handle("mail Ann")
    assert runner.ran == 1 and session.num_answers == 2 and shown[-1] == ["mail Ann", "", "sent"]
    assert "  -> sent" in capsys.readouterr().out
