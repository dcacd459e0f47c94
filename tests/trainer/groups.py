"""Groups of processes for tests: a process of its own imports torch once, and forks the members of each group.

A test asks for `module.function`; each member calls it with the arguments, as if torchrun had started it, and what it
returns comes back. Forking costs milliseconds, where starting Python and importing torch would cost seconds a member.

    {"function": "test_world.counted", "processes": 2, "folder": ..., "arguments": {}}   ->  {"codes": [0, 0]}
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS = 60
"""A group that takes longer hangs, and is killed."""


class Groups:
    """The other end of the process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, function: str, processes: int, folder: Path, /, **arguments: Any) -> tuple[list[int], list[Any]]:
        """The exit statuses of the members as `os.waitpid` has them, and what they returned (or the traceback).

        With no processes, one that belongs to no group.
        """
        folder.mkdir(parents=True, exist_ok=True)
        request = {"function": function, "processes": processes, "folder": str(folder), "arguments": arguments}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())["codes"]
        files = [folder / f"returned-{rank}" for rank in range(len(codes))]
        return codes, [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=SECONDS)


def _serve() -> None:
    import torch.distributed.fsdp
    import torch.distributed.tensor  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps({"codes": _fork(**request)}), flush=True)


def _fork(function: str, processes: int, folder: str, arguments: dict[str, Any]) -> list[int]:
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, None, True)
    members = []
    for rank in range(max(processes, 1)):
        member = os.fork()
        if member == 0:
            if processes:
                size = str(processes)
                os.environ |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_RUN_ID": "test",
                }  # fmt: skip
            _become_member(function, Path(folder) / f"returned-{rank}", arguments)
        members.append(member)
    return _wait(members)


def _become_member(function: str, returned: Path, arguments: dict[str, Any]) -> None:
    os.dup2(2, 1)  # what it prints is no answer
    module, _, name = function.rpartition(".")
    code = 1
    try:
        value = getattr(importlib.import_module(module), name)(**arguments)
        returned.write_bytes(pickle.dumps(value))
        code = 0
    except BaseException:
        returned.write_bytes(pickle.dumps(traceback.format_exc()))
    finally:
        os._exit(code)


def _wait(members: list[int]) -> list[int]:
    until = time.monotonic() + SECONDS
    codes: dict[int, int] = {}
    while len(codes) < len(members):
        for member in members:
            if member not in codes and (found := os.waitpid(member, os.WNOHANG))[0]:
                codes[member] = found[1]
        if time.monotonic() > until:
            for member in members:
                with suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[member] for member in members]


if __name__ == "__main__":
    _serve()
