"""Sandbox: functions of a Python file that a model may call, each call in a process of its own that can do little.

    with Sandbox(Path("my_tools.py")) as tools:
        tools.declarations                       # OpenAI's entries
        tools.run(ToolCall("add", {"a": 1, "b": 2}))

What a call cannot do: run longer than `seconds`, take more than `memory_mib`, and, where the system lets a process
give that up (confinement.py; `held` says what holds), use the network or write outside a scratch folder that is
deleted at the end. It starts without your environment variables. It can read what you can read: do not offer a
function that hands out files to a model that reads messages of strangers. Nothing is remembered between two calls but
the files in the scratch folder. Mistakes, time-outs and crashes come back as text, for the model to read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError

_START = "import sys; sys.path.insert(0, sys.argv[1]); from leveret.tools.sandbox_runner import main; main({fd})"
_START_SECONDS = 5
"""What a process may take to begin, beside the time that a call has, which the process keeps by itself."""
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a call came to."""

    text: str
    """What the model is told."""
    failed: bool = False
    """Whether it is an error."""


class Sandbox:
    """Runs the functions of one file; a context manager that takes its scratch folder away."""

    def __init__(self, file: Path, *, seconds: int = 10, memory_mib: int = 1024, network: bool = False) -> None:
        """Reads the file, in a process that is confined as its calls will be.

        Raises ToolError when it has no function, or one whose arguments cannot be declared.
        """
        if not file.is_file():
            raise ToolError(f"{file} does not exist", hint="name a Python file with the functions to offer")
        self._file = file.resolve()
        self._limits = {"seconds": seconds, "memory_mib": memory_mib, "network": network}
        self._seconds = seconds
        self._scratch = tempfile.TemporaryDirectory(prefix="leveret-tools-")
        found = self._ask(None)
        if "tools" not in found:
            self._scratch.cleanup()
            raise ToolError(f"{file}: {found['text']}")
        self.declarations: list[dict[str, Any]] = found["tools"]
        """OpenAI's entries of the functions."""
        self.held: list[str] = found["held"]
        """What its calls have given up, in words."""
        self._acts = frozenset(found["acts"])
        if not self.declarations:
            self._scratch.cleanup()
            raise ToolError(f"{file} defines no public function")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.cleanup()

    @property
    def names(self) -> list[str]:
        """Names of the functions."""
        return [entry["function"]["name"] for entry in self.declarations]

    def is_act(self, call: ToolCall) -> bool:
        """Whether the person is to be asked before this call."""
        return call.name in self._acts

    def run(self, call: ToolCall) -> Outcome:
        """Run a call; whatever goes wrong is an outcome as well."""
        answer = self._ask({"name": call.name, "arguments": call.arguments})
        return Outcome(text=answer["text"], failed=answer["failed"])

    def _ask(self, call: dict[str, Any] | None) -> dict[str, Any]:
        """The answer of one process; an outcome in words when it gave none."""
        task = {**self._limits, "file": str(self._file), "folder": self._scratch.name, "call": call}
        package = str(Path(__file__).resolve().parents[2])
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment |= {"HOME": self._scratch.name, "TMPDIR": self._scratch.name}
        with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
            question.write(json.dumps(task).encode())
            question.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", "-c", _START.format(fd=said.fileno()), package],
                stdin=question,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=self._scratch.name,
                env=environment,
                pass_fds=(said.fileno(),),
                start_new_session=True,
            )
            try:
                late = not _ends_within(process, self._seconds + _START_SECONDS)
            finally:  # also when Ctrl-C comes
                _end(process)
            answer, complaints = (_content(file) for file in (said, errors))
        if late:
            return _failure(f"it did not finish within {self._seconds} s")
        try:
            parsed: dict[str, Any] = json.loads(answer)
            return parsed
        except ValueError:
            return _failure(_why_ended(process.returncode, self._seconds, complaints))


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process and of what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _content(file: IO[bytes]) -> bytes:
    """What another process has written to a file that we opened."""
    file.seek(0)
    return file.read()


def _failure(text: str) -> dict[str, Any]:
    return {"text": text, "failed": True}


def _why_ended(code: int, seconds: int, complaints: bytes) -> str:
    if -code in (signal.SIGXCPU, signal.SIGALRM):
        return f"it did not finish within {seconds} s"
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    lines = complaints.decode(errors="replace").strip().splitlines()
    return f"the process ended without an answer: {lines[-1][:200] if lines else f'exit code {code}'}"
