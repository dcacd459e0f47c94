"""What functions of a file can do in the sandbox, and how what they must not do comes back as text."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError
from leveret.tools.act import act, is_act
from leveret.tools.sandbox import Sandbox
from leveret.tools.schema import tools_from_json

FILE = '''
import enum, os, socket, sys, time
from leveret.tools.act import act

class Day(enum.Enum):
    TODAY = "today"

def add(a: int, b: int = 2) -> dict:
    """Adds.

    Args:
        a: One.
    """
    return {"和": a + b}

@act
def send(to: str) -> None:
    """Sends."""
    print("sent to", to)

def day(when: Day) -> str:
    return f"{when!r} {sorted(set(os.environ) & {'SECRET', 'HOME'})}"

def divide(by: int) -> float:
    return 1 / by

def leave() -> str:
    sys.exit(3)

def vanish() -> str:
    os._exit(0)

def spin() -> str:
    while True: pass

def leave_a_child() -> str:
    if os.fork() == 0:
        time.sleep(60)
    return str(os.getpid())

def hungry() -> int:
    return len(bytearray(3 * 10**9))

def connect(port: int) -> str:
    socket.create_connection(("127.0.0.1", port), timeout=2)
    return "connected"

def write(path: str) -> str:
    open(path, "w").write("x")
    return "written"

def long() -> str:
    return "哈" * 20_000

async def later(x: int) -> int:
    return x + 1

def each(x: int) -> list:
    yield x
    yield -x

def odd_name() -> str:
    return os.fsdecode(b"a\\xff.txt")

def odd_mistake() -> str:
    raise ValueError(odd_name())

def wait() -> str:
    time.sleep(60)

def _hidden() -> str:
    return ""
'''


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    file = tmp_path_factory.mktemp("tools") / "mine.py"
    file.write_text(FILE, encoding="utf-8")
    with Sandbox(file, seconds=1) as sandbox:
        yield sandbox


def test_public_functions_of_the_file_are_declared_and_acts_are_known(tools: Sandbox) -> None:
    assert tools.names[:3] == ["add", "send", "day"] and "_hidden" not in tools.names and "act" not in tools.names
    declared = {tool.name: tool for tool in tools_from_json(tools.declarations)}
    assert declared["add"].description == "Adds." and declared["add"].parameter("a").description == "One."
    assert tools.is_act(ToolCall("send", {})) and not tools.is_act(ToolCall("add", {}))


@pytest.mark.parametrize(
    ("name", "arguments", "text", "failed"),
    [
        ("add", {"a": 1}, '{"和": 3}', False),
        ("send", {"to": "Ann"}, "sent to Ann", False),
        ("day", {"when": "today"}, "<Day.TODAY: 'today'> ['HOME']", False),
        ("divide", {"by": 0}, "ZeroDivisionError: division by zero", True),
        ("add", {"a": "x"}, "add: a must be an integer, not 'x'", True),
        ("_hidden", {}, "there is no function '_hidden'", True),
        ("leave", {}, "SystemExit: 3", True),
        ("vanish", {}, "ended without an answer", True),
        ("write", {"path": "note.txt"}, "written", False),
        ("later", {"x": 1}, "2", False),
        ("each", {"x": 1}, "[1, -1]", False),
        ("odd_name", {}, "a?.txt", False),
        ("odd_mistake", {}, "ValueError: a?.txt", True),
    ],
)
def test_a_call_and_its_mistakes_come_back_as_text(
    tools: Sandbox, name: str, arguments: dict, text: str, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    outcome = tools.run(ToolCall(name, arguments))
    assert text in outcome.text and outcome.failed is failed


def test_a_long_result_is_cut(tools: Sandbox) -> None:
    text = tools.run(ToolCall("long", {})).text
    assert len(text) < 8_100 and text.endswith("... (cut; 20,000 characters)")


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
def test_memory_time_and_children_are_bounded(tools: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MemoryError" in tools.run(ToolCall("hungry", {})).text
    pid = int(tools.run(ToolCall("leave_a_child", {})).text)
    time.sleep(0.05)
    assert str(pid) not in _groups_alive(), "nothing of a call lives on"
    monkeypatch.setattr("leveret.tools.sandbox._START_SECONDS", 0)
    spun = tools.run(ToolCall("spin", {}))
    assert spun.failed and "did not finish within 1 s" in spun.text


def test_a_call_that_only_waits_has_no_more_time_than_one_that_works(tools: Sandbox) -> None:
    started = time.monotonic()
    waited = tools.run(ToolCall("wait", {}))
    assert waited.failed and "did not finish within 1 s" in waited.text and time.monotonic() - started < 4


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
def test_an_interrupt_leaves_no_process_behind(tools: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def interrupt(process: subprocess.Popen[bytes], seconds: float) -> bool:
        started.append(process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr("leveret.tools.sandbox._ends_within", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tools.run(ToolCall("spin", {}))
    assert started and str(started[0]) not in _groups_alive()


def _groups_alive() -> set[str]:
    """Process groups with a process that is not just waiting to be buried."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=False).stdout
    return {line.split()[0] for line in listed.splitlines() if not line.split()[1].startswith("Z")}


def test_the_network_is_out_of_reach(tools: Sandbox) -> None:
    if not any("network" in each or "TCP" in each or "sockets" in each for each in tools.held):
        pytest.fail(f"no word on the network: {tools.held}")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = tools.run(ToolCall("connect", {"port": server.getsockname()[1]}))
    assert outcome.failed and "connected" not in outcome.text


def test_files_elsewhere_are_not_written_where_landlock_is(tools: Sandbox, tmp_path: Path) -> None:
    if not any("Landlock" in each and "writes" in each for each in tools.held):
        pytest.skip(f"this system has no Landlock: {tools.held}")
    outcome = tools.run(ToolCall("write", {"path": str(tmp_path / "x")}))
    assert outcome.failed and "PermissionError" in outcome.text and not (tmp_path / "x").exists()


def test_the_network_can_be_allowed(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(FILE, encoding="utf-8")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, Sandbox(file, network=True) as tools:
        assert tools.run(ToolCall("connect", {"port": server.getsockname()[1]})).text == "connected"
        assert not any("network" in each or "TCP" in each for each in tools.held)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def f(x): pass", "has no type"),
        ("x = 1", "no public function"),
        ("def f(:", "SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
    ],
)
def test_a_file_that_offers_nothing_is_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(content)
    with pytest.raises(ToolError, match=words):
        Sandbox(file)
    with pytest.raises(ToolError, match="does not exist"):
        Sandbox(tmp_path / "none.py")


def test_the_scratch_folder_is_taken_away(tmp_path: Path) -> None:
    file = tmp_path / "where.py"
    file.write_text("import os\ndef where() -> str:\n    return os.getcwd()\n")
    with Sandbox(file) as tools:
        scratch = tools.run(ToolCall("where", {})).text
        assert os.path.isdir(scratch)
    assert not os.path.exists(scratch)


def test_the_mark_of_an_act_is_all_that_the_decorator_adds() -> None:
    def plain() -> int:
        return 5

    assert act(plain) is plain and plain() == 5 and is_act(plain) and not is_act(lambda: 5)
