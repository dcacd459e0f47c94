"""A running server: bound to its port, answering in a thread, stopped when the `with` block ends.

    with running(model, ServeConfig(model="...", port=0)) as url:
        ...  # url is http://127.0.0.1:54321

The socket is bound before anything else happens, so that a port in use is an error and not a log line, and so that
port 0 can be told.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from leveret.engine.text import TextModel
from leveret.errors import ConfigError, LeveretError
from leveret.serve.app import create_app
from leveret.serve.config import ServeConfig
from leveret.serve.handlers import Handlers


@contextlib.contextmanager
def running(model: TextModel, config: ServeConfig) -> Iterator[str]:
    """Serve in a thread; yields the base URL, without a path. Raises ConfigError when the port cannot be had."""
    with bound_socket(config) as listener:
        server = server_for(model, config)
        thread = threading.Thread(target=server.run, args=([listener],), name="leveret-server", daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise LeveretError("the server did not start; its log says why")
                time.sleep(0.005)
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join()


LAST_WORDS_SECONDS = 1
"""How long clients whose answers are cut off have to read that they are."""


class DrainingServer(uvicorn.Server):
    """A server that, told to stop by a signal, first lets the answers under way end and reach their clients.

    Told twice, it stops at once.
    """

    def __init__(self, app: FastAPI, *, drain_seconds: float) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=LAST_WORDS_SECONDS))
        self._handlers: Handlers = app.state.handlers
        self._drain_seconds = drain_seconds
        self._last_moment: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; uvicorn's own way would end the open answers."""
        again = self._last_moment is not None
        self._handlers.drain()
        self._last_moment = time.monotonic() + (0 if again else self._drain_seconds)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn several times a second; True ends the server."""
        if self._last_moment is not None and not self.should_exit:
            late = time.monotonic() >= self._last_moment
            self.should_exit = late or not (self._handlers.busy or self._is_sending)
            if late:
                self._handlers.close()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End; a connection whose client still does not read is cut off."""
        await super().shutdown(sockets)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # which closes their sockets

    @property
    def _is_sending(self) -> bool:
        """Whether a client has still to take what was handed over."""
        transports = (connection.transport for connection in self.server_state.connections)
        return any(transport.get_write_buffer_size() for transport in transports)


def server_for(model: TextModel, config: ServeConfig) -> DrainingServer:
    """A server that has not been started."""
    return DrainingServer(create_app(model, config), drain_seconds=config.drain_seconds)


def bound_socket(config: ServeConfig) -> socket.socket:
    """A listening socket at the config's address. Raises ConfigError when the address or the port cannot be had."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {config.host}:{config.port}: {error.strerror or error}",
            hint="another server may be running; choose another port, or port=0 for a free one",
        ) from None


def url_of(listener: socket.socket) -> str:
    """The base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
