"""A server told to stop lets the answers under way end, refuses new ones, and does not wait for ever."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from leveret.engine.text import TextModel
from leveret.serve.config import ServeConfig
from leveret.serve.running import DrainingServer, bound_socket, server_for, url_of

from .test_errors import CHAT, MESSAGES, send

LONG = {"prompt": "Set a", "max_tokens": 60, "ignore_eos": True, "stream": True}


@contextmanager
def serving(
    model: TextModel, *, small_buffers: bool = False, **options: Any
) -> Iterator[tuple[DrainingServer, str, threading.Thread]]:
    config = ServeConfig(model="x", port=0, page=False, **options)
    with bound_socket(config) as listener:
        if small_buffers:  # those of the system hold megabytes
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        server = server_for(model, config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield server, url_of(listener), thread
        finally:
            server.should_exit = True
            thread.join(timeout=60)


def slowed(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = model.model.hidden

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.01)
        return hidden(*args, **kwargs)

    monkeypatch.setattr(model.model, "hidden", slow)


def begun(url: str, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A streamed answer of which the first piece has come."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body))
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    return connection, response


def test_what_runs_ends_whole_and_what_comes_is_refused(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(model, monkeypatch)
    with serving(model) as (server, url, thread):
        connection, response = begun(url, LONG)
        server.handle_exit(signal.SIGTERM, None)
        status, content = send(url, "GET", "/health")
        assert status == 503 and content["status"] == "draining"
        body = json.dumps({"messages": MESSAGES, "max_tokens": 2}).encode()
        status, content = send(url, "POST", CHAT, body)
        assert status == 503 and content["error"]["code"] == "shutting_down"
        rest = response.read().decode()
        connection.close()
        assert rest.rstrip().endswith("data: [DONE]") and '"finish_reason": "length"' in rest
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.mark.parametrize("stream", [True, False])
def test_who_reads_slowly_gets_the_whole_answer_too(
    model: TextModel, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is done long before the client has read; new requests are told so meanwhile."""
    ticks, tick = threading.Semaphore(0), DrainingServer.on_tick

    async def counted(self: DrainingServer, counter: int) -> bool:
        ends = await tick(self, counter)
        if self._last_moment is not None:
            ticks.release()
        return ends

    monkeypatch.setattr(DrainingServer, "on_tick", counted)
    with serving(model, small_buffers=True) as (server, url, thread):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((urlsplit(url).hostname, urlsplit(url).port))
        body = json.dumps(LONG | {"n": 8, "max_tokens": 150, "logprobs": 9, "stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        got = client.recv(1000)
        assert got.startswith(b"HTTP/1.1 200")
        while server._handlers._worker.busy:  # type: ignore[union-attr]
            time.sleep(0.005)
        server.handle_exit(signal.SIGTERM, None)
        for _ in range(3):
            assert ticks.acquire(timeout=60)
        assert send(url, "GET", "/health")[0] == 503 and not server.should_exit
        ending = b"data: [DONE]\n\n\r\n0\r\n\r\n" if stream else b"}}"
        while not got.endswith(ending):
            fresh = client.recv(65536)
            assert fresh, "the answer was cut"
            got += fresh
        client.close()
        thread.join(timeout=60)
        assert not thread.is_alive() and len(got) > 300_000


def test_what_takes_longer_than_the_limit_ends_with_an_error(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(model, monkeypatch)
    with serving(model, drain_seconds=0.2) as (server, url, thread):
        connection, response = begun(url, LONG | {"max_tokens": 1500})
        server.handle_exit(signal.SIGTERM, None)
        last = response.read().decode().strip().splitlines()[-1].removeprefix("data: ")
        connection.close()
        assert json.loads(last)["error"]["code"] == "shutting_down"
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_who_does_not_read_is_cut_off_when_the_time_is_over(model: TextModel) -> None:
    with serving(model, small_buffers=True, drain_seconds=0.2) as (server, url, thread):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((urlsplit(url).hostname, urlsplit(url).port))
        body = json.dumps(LONG | {"n": 8, "max_tokens": 150, "logprobs": 9}).encode()
        client.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        server.handle_exit(signal.SIGTERM, None)
        thread.join(timeout=4)
        assert not thread.is_alive()
        client.close()


def test_told_twice_it_stops_at_once(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(model, monkeypatch)
    with serving(model) as (server, url, thread):
        connection, response = begun(url, LONG | {"max_tokens": 1500})
        for _ in range(2):
            server.handle_exit(signal.SIGINT, None)
        last = response.read().decode().strip().splitlines()[-1].removeprefix("data: ")
        connection.close()
        assert json.loads(last)["error"]["code"] == "shutting_down"
        thread.join(timeout=4)
        assert not thread.is_alive()


@pytest.mark.slow
def test_a_process_that_gets_sigterm_ends_its_stream_and_exits_with_0(model_dir: Path) -> None:
    command = [sys.executable, "-c", "from leveret.cli.main import main; raise SystemExit(main())", "serve"]
    environment = {**os.environ, "LEVERET_API_KEY": "secret"}
    process = subprocess.Popen(
        [*command, str(model_dir), "port=0", "page=false"], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    try:
        url = process.stderr.readline().split(" at ")[1].split("/v1")[0]
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        deadline = time.monotonic() + 10
        while True:
            try:
                body = json.dumps(LONG | {"max_tokens": 200})
                connection.request("POST", "/v1/completions", body, {"Authorization": "Bearer secret"})
                break
            except ConnectionError:
                assert time.monotonic() < deadline
        response = connection.getresponse()
        assert response.status == 200 and response.readline().startswith(b"data: ")
        process.send_signal(signal.SIGTERM)
        assert response.read().rstrip().endswith(b"data: [DONE]")
        connection.close()
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 0 and "stopped" in rest and "Traceback" not in rest
    finally:
        process.kill()
        process.communicate()
