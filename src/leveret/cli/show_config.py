"""ShowConfig: what `leveret show` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from leveret.config import Config, Positional


class ShowConfig(Config):
    """Curves, label X-ray, certificate and evaluation of a run, as pages in a browser; nothing is written but `output`.

    `leveret serve MODEL runs=FOLDER` shows the same pages beside the model.
    """

    runs: Annotated[Path, Positional(0)]
    """Folder of a run, or folder with runs in it."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    """Port to listen at, on this machine only; 0 takes a free one."""
    language: Literal["en", "zh"] = "en"
    """Language of the pages in `output`; on the server the browser says which."""
    output: Path | None = None
    """Folder to write a page for each run to, as RUN.html, which needs nothing else; then no server is started."""
