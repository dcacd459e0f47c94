"""DoctorConfig: what `leveret doctor` takes."""

from __future__ import annotations

from pathlib import Path

from leveret.config import Config


class DoctorConfig(Config):
    """Prints what this machine and this installation have, then runs a tiny model two ways that must agree."""

    folder: Path = Path(".")
    """The folder that runs will be written to; its free space is shown."""
