"""`leveret show`: pages of runs in a browser, or as files that need nothing else."""

from __future__ import annotations

import contextlib
import socket

from leveret.cli.show_config import ShowConfig
from leveret.commands import StageResult
from leveret.console import Console
from leveret.errors import ConfigError
from leveret.extras import require
from leveret.paths import atomic_write
from leveret.serve.web.run_folder import runs_below
from leveret.serve.web.run_page import run_page

MOST_REQUEST_BYTES = 10_000


def run(config: ShowConfig, console: Console) -> StageResult:
    """Write the pages, or serve them until interrupted."""
    runs = runs_below(config.runs)
    if not runs:
        raise ConfigError(
            f"{config.runs} holds no run: no metrics.jsonl, certificate.json, evaluation.json or the like is in it",
            hint="leveret inspect says what a folder is",
        )
    if config.output is None:
        _serve(config, console)
        return StageResult(output=None, summary={"runs": len(runs)})
    for name, folder in runs.items():
        file = config.output / f"{name}.html"
        atomic_write(file, run_page(name, folder, config.language, alone=True))
        console.info(str(file))
    return StageResult(output=config.output, summary={"runs": len(runs)})


def _serve(config: ShowConfig, console: Console) -> None:
    for package in ("fastapi", "uvicorn"):
        require(package, extra="serve", purpose="showing runs in a browser (output=FOLDER writes files instead)")
    import uvicorn

    from leveret.serve.web.door import STILL_POLICY, Door
    from leveret.serve.web.runs import runs_app

    pages = Door(runs_app(config.runs), api_keys=(), most_bytes=MOST_REQUEST_BYTES, policy=STILL_POLICY)
    with _listening(config.port) as listener:
        console.info(f"open http://127.0.0.1:{listener.getsockname()[1]}/runs in a browser (stop with Ctrl-C)")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(pages, log_level="warning", lifespan="off")).run([listener])
    console.info("stopped")


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen at port {port}: {error.strerror or error}", hint="choose another, or port=0 for a free one"
        ) from None
