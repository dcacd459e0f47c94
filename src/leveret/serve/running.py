"""A running server: bound to its port, answering in a thread, stopped when the `with` block ends.

    with running(model, ServeConfig(model="...", port=0)) as url:
        ...  # url is http://127.0.0.1:54321

The socket is bound before anything else happens, so that a port in use is an error and not a log line, and so that
port 0 can be told.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from leveret.engine.text import TextModel
from leveret.errors import ConfigError, LeveretError
from leveret.serve.app import create_app
from leveret.serve.config import ServeConfig


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


def server_for(model: TextModel, config: ServeConfig) -> uvicorn.Server:
    """A server that has not been started; it gives open answers a few seconds to end when it is stopped."""
    return uvicorn.Server(uvicorn.Config(create_app(model, config), log_level="warning", timeout_graceful_shutdown=5))


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
