"""The server under load on a CPU: ours against llama.cpp's, the same small model in 8 bits, the same requests.

    python benchmarks/serve_cpu.py [--size tiny|hare] [--clients N] [--rounds N] [--llama-server PROGRAM]
                                   [--keep DIR] [--json FILE] [--quick]

Each server is a process of its own, started once; the clients are other processes on the same machine and take their
share of it on both sides. Works, all streamed over loopback, greedy:

    1 client     one request after the other
    crowd        --clients requests at once (default 64), every fourth long (prompt and answer), the others short

Printed for each: tokens of answers a second, and for the crowd the times to the first text and to the end, median and
99th of a hundred. llama.cpp's server is `llama-server` where one is given, with a slot for every client; else that of
llama-cpp-python, which answers one request at a time, told not to interrupt it. Of the random weights those of the end
token are zero, so both generate all that is asked for: a stream that ends earlier, is cut or holds pieces of another is
a failure of ours. The peer may lose a tenth, which is counted and told.

Then ours alone: `faults`, the crowd again among clients that leave in the midst of answers, send rubbish, prompts that
are too long, half a request, or read slowly. Each of the crowd must get its whole answer, and afterwards the server
must hold nothing: no request, no room in the cache, no open socket more than before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine_cpu import QUICK_SHAPE, SHAPES, prepare, write_model
from http_load import Outcome, crowd, leave, status, stop_halfway, stream
from side_by_side import Side, Timing, Works, alternate, report

BITS = 8
START_SECONDS = 120
MAY_LOSE = {"llama_cpp": 0.1}  # llama-cpp-python's server ends some streams with an error of its own: less work for it
RUBBISH = [b"", b"{", b"\xff", b'{"prompt": "\\ud800"}', b'{"prompt": "x", "temperature": "hot"}', b"[" * 10_000]


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much is asked for: characters of prompts (each a token), tokens of answers."""

    clients: int = 64
    short: tuple[int, int] = (32, 32)
    long: tuple[int, int] = (512, 128)
    alone: int = 4

    def bodies(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Requests with prompts of their own."""
        draw = random.Random(seed)
        kinds = [self.long if number % 4 == 3 else self.short for number in range(count)]
        letters = "abcdefghijklmnopqrstuvwxyz"
        return [
            {"prompt": "".join(draw.choices(letters, k=length)), "max_tokens": answer, "temperature": 0}
            for length, answer in kinds
        ]

    def tokens(self, count: int) -> int:
        """Tokens of the answers to so many requests."""
        return sum(body["max_tokens"] for body in self.bodies(count, 0))


FEW = Load(clients=8, short=(8, 4), long=(32, 8), alone=2)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one side's clients are told."""

    url: str
    load: Load


def make_clients(plan: Plan) -> Works:
    """The clients of one server; results are plain data."""
    calls = iter(range(10**9))

    async def one_by_one(bodies: Sequence[dict[str, Any]]) -> list[Outcome]:
        return [await stream(plan.url, body) for body in bodies]

    def seen(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
        return [vars(each) for each in outcomes]

    return {
        "1 client": lambda: seen(asyncio.run(one_by_one(plan.load.bodies(plan.load.alone, next(calls))))),
        "crowd": lambda: seen(asyncio.run(crowd(plan.url, plan.load.bodies(plan.load.clients, next(calls))))),
    }


@contextmanager
def served(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers; ended at the end."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise SystemExit(f"{' '.join(command)} did not start:\n{said.read().decode(errors='replace')}")
                time.sleep(0.1)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(port: int) -> bool:
    """Whether the model behind the port has been loaded."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def our_command(model: Path, port: int, load: Load) -> list[str]:
    options = [f"port={port}", "page=false", "dtype=bfloat16", f"max_concurrent_requests={load.clients}"]
    return [sys.executable, "-m", "leveret", "serve", str(model), *options]


def their_command(file: Path, port: int, load: Load, *, threads: int, program: str | None) -> list[str]:
    context = 2 * sum(load.long)  # of each slot; more than is needed
    address = ["--host", "127.0.0.1", "--port", str(port), "--model", str(file)]
    if program is not None:
        slots = ["-np", str(load.clients), "-c", str(load.clients * context)]
        return [program, *address, *slots, "-t", str(threads), "-tb", str(threads), "--no-webui"]
    settings = {
        "n_ctx": context,
        "n_threads": threads,
        "n_threads_batch": threads,
        "interrupt_requests": "false",
        "verbose": "false",
    }
    return [sys.executable, "-m", "llama_cpp.server", *address,
            *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]  # fmt: skip


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """The most memory that a running process has held."""
    lines = Path(f"/proc/{process.pid}/status").read_text("ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


async def bad_company(url: str, load: Load, longest: int) -> list[Outcome]:
    """The crowd among clients that misbehave: what the crowd saw."""
    bodies = load.bodies(load.clients, 77)
    good = [stream(url, body, pause_seconds=0.01 * (number % 3 == 2)) for number, body in enumerate(bodies)]
    bad: list[Any] = [leave(url, body | {"max_tokens": longest // 2}, after_lines=at % 9) for at, body in
                      enumerate(bodies[::2])]  # fmt: skip
    bad += [status(url, raw) for raw in RUBBISH * 4]
    bad += [status(url, json.dumps({"prompt": "ab" * 2 * longest}).encode()) for _ in range(8)]
    bad += [stop_halfway(url) for _ in range(8)]
    outcomes = await asyncio.gather(*good, *bad)
    refused = [each for each in outcomes if isinstance(each, int)]
    assert set(refused) == {400}, f"rubbish was answered with {sorted(set(refused))}"
    return [each for each in outcomes if isinstance(each, Outcome)]


def faults(process: subprocess.Popen[bytes], url: str, load: Load, longest: int) -> tuple[dict[str, str | None], str]:
    """What is wrong after all that, if anything; and the times of the crowd."""
    asyncio.run(bad_company(url, load, longest))  # what is made once is made now
    sockets = Path(f"/proc/{process.pid}/fd")
    before, memory = len(list(sockets.iterdir())), peak_bytes(process)
    outcomes = asyncio.run(bad_company(url, load, longest))
    deadline = time.monotonic() + 20
    held, after = left(url, sockets)
    while (held or after > before) and time.monotonic() < deadline:
        time.sleep(0.1)
        held, after = left(url, sockets)
    lost = [each.wrong for each in outcomes if each.wrong]
    checks = {
        "faults: every good client got its whole answer": None if not lost else f"no: {lost[:3]}",
        "faults: nothing is held afterwards": None if not held else f"no: {held}",
        "faults: no socket is left open": None if after <= before else f"no: {before} before, {after} after",
    }
    grown = (peak_bytes(process) - memory) / 2**20
    return checks, f"faults: {told(outcomes)}; peak memory grew by {grown:.0f} MiB"


def left(url: str, sockets: Path) -> tuple[dict[str, float], int]:
    """What the server holds, and how many files and sockets it has open."""
    kinds = ("leveret_answers_running", "leveret_answers_waiting", "leveret_engine_used_tokens")
    held = {name: value for name, value in metrics(url).items() if value and name.startswith(kinds)}
    return held, len(list(sockets.iterdir()))


def told(outcomes: Sequence[Outcome]) -> str:
    """Times in words."""

    def at(values: Sequence[float], share: float) -> str:
        return f"{sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1000:,.0f} ms"

    first, whole = [each.first_seconds for each in outcomes], [each.seconds for each in outcomes]
    return (f"first text p50 {at(first, 0.5)}, p99 {at(first, 0.99)}; "
            f"whole p50 {at(whole, 0.5)}, p99 {at(whole, 0.99)}")  # fmt: skip


def compare(urls: dict[str, str], load: Load, rounds: int) -> tuple[list[Timing], dict[str, str | None], list[str]]:
    """Both servers by turns: timings, checks, and the times of the clients."""
    sides = [Side(name, make_clients, Plan(url=url, load=load)) for name, url in urls.items()]
    timings, checks, notes = [], {}, []
    for work, count in (("1 client", load.alone), ("crowd", load.clients)):
        seen: dict[str, list[Outcome]] = {name: [] for name in urls}

        def same(ours: Any, theirs: Any, seen: dict[str, list[Outcome]] = seen) -> str | None:
            found = {
                name: [Outcome(**each) for each in result] for name, result in zip(urls, (ours, theirs), strict=True)
            }
            for name, outcomes in found.items():
                seen[name] += outcomes
            wrong = {name: [each.wrong for each in outcomes if each.wrong] for name, outcomes in found.items()}
            lost = [
                name for name, each in wrong.items() if len(each) > math.ceil(len(found[name]) * MAY_LOSE.get(name, 0))
            ]
            return f"no: {', '.join(f'{name} {wrong[name][:2]}' for name in lost)}" if lost else None

        amount = load.tokens(count)
        timing, difference = alternate(sides, work, amount=amount, unit="token", rounds=rounds, same=same)
        timings.append(timing)
        checks[f"{work}: every stream is whole"] = difference
        for name, outcomes in seen.items():
            lost = sum(each.wrong is not None for each in outcomes)
            notes.append(f"{work}, {name}: {told(outcomes[count:])}; {lost} of {len(outcomes)} streams not whole")
    for side in sides:
        side.close()
    return timings, checks, notes


def main() -> int:
    options = read_options()
    load = FEW if options.quick else replace(Load(), clients=options.clients)
    rounds = 1 if options.quick else options.rounds
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    shape = QUICK_SHAPE if options.quick else SHAPES[options.size]
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.keep or Path(temporary)) / ("quick" if options.quick else options.size)
        if not (root / "bfloat16").exists():
            write_model(shape, root / "bfloat16")
        ours, theirs = prepare(root / "bfloat16", root, BITS)
        ports = {"leveret": free_port(), "llama_cpp": free_port()}
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        command = their_command(theirs, ports["llama_cpp"], load, threads=threads, program=options.llama_server)
        with served(our_command(ours, ports["leveret"], load), ports["leveret"]) as mine:
            with served(command, ports["llama_cpp"]) as other:
                timings, checks, notes = compare(urls, load, rounds)
                peaks = {"leveret": peak_bytes(mine), "llama_cpp": peak_bytes(other)}
            found, note = faults(mine, urls["leveret"], load, shape.max_position_embeddings)
    checks |= found
    notes.append(note)
    print("\n".join(notes))
    sides = [Side.__new__(Side), Side.__new__(Side)]
    sides[0].name, sides[1].name = urls
    return report(
        "the server on a CPU",
        timings,
        sides,
        checks,
        settings={"load": vars(load), "bits": BITS, "notes": notes, "llama_server": options.llama_server},
        packages=["leveret", "torch", "llama_cpp_python"],
        file=options.json,
        peaks=peaks,
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SHAPES), default="tiny")
    parser.add_argument("--clients", type=int, default=Load.clients)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--llama-server", metavar="PROGRAM", help="llama.cpp's own server")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the models here and find them next time")
    parser.add_argument("--quick", action="store_true", help="a toy model and one round: does the script still work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
