"""GenerateConfig: what `leveret generate` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from leveret.cli.sampling_config import SamplingConfig
from leveret.config import Flag, Positional
from leveret.engine.structure import StructureOptions
from leveret.errors import ConfigError


class GenerateConfig(SamplingConfig):
    """The text is continued as it is, without a chat template; only the continuation is printed."""

    model: Annotated[str, Positional(0, places=True)]
    """Model directory, or a name on the Hugging Face hub."""
    prompt: Annotated[str, Positional(1)]
    """The text to continue."""
    json_schema: Annotated[Path | None, Flag("schema")] = None
    """File with a JSON Schema: the continuation is JSON that fits it (schema=FILE)."""
    regex: str | None = None
    """Regular expression that the whole continuation matches."""
    choice: list[str] | None = None
    """Texts, one of which the continuation is."""
    grammar: Path | None = None
    """File with a grammar, in Lark's notation or llama.cpp's GBNF, that the continuation follows."""
    output: Path | None = None
    """Folder to write the continuation to, as generated.txt."""

    def form(self) -> StructureOptions:
        """The form that the continuation shall have, if one was given. ConfigError when its file cannot be read."""
        form: StructureOptions = {}
        if self.json_schema is not None:
            form["schema"] = _read(self.json_schema)
        if self.regex is not None:
            form["regex"] = self.regex
        if self.choice is not None:
            form["choice"] = self.choice
        if self.grammar is not None:
            form["grammar"] = _read(self.grammar)
        return form


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file} cannot be read: {reason}", hint="schema and grammar name files") from None
