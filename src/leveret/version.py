"""The version of this package, written once: pyproject.toml and `leveret --version` read it here."""

VERSION = "0.1.0"
