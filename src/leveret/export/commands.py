"""Command lines for what was exported: llama.cpp with the right template, Ollama, and where to upload it to.

`--jinja` makes llama.cpp write conversations with the template in the file; that is the line to use. An old llama.cpp,
or a file whose template it cannot read, takes prefix and suffix of a user's turn instead. They come from the pieces
learnt from the template (ollama.py), with every newline: the Huozi README forgot the one after 助手, and the model then
saw a conversation it was never trained on. Newlines stand in the quotes as they are, so that no shell and no `-e` has
to make them of `\\n`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leveret.export.ollama import BEGINNING, END, Pieces

SYSTEM = "You are a helpful assistant."
"""Stands in the command of a model that has system messages; to be replaced."""


@dataclass(frozen=True, kw_only=True)
class ChatWords:
    """What llama.cpp is given to write a conversation without the template."""

    prompt: str
    """Before the first turn of the user: the system message, up to what ends it."""
    prefix: str
    """Before each turn of the user."""
    suffix: str
    """After it: what the model's reply follows."""
    stop: str
    """What ends a reply, which the model writes itself."""


def chat_words(pieces: Pieces, stops: Sequence[str]) -> ChatWords | None:
    """Such words that every turn is written as the template does; None where one prefix cannot do that."""
    between = pieces.between
    suffix, again = between["user", END], between.get(("assistant", "user"))
    stop = next((stop for stop in stops if again is not None and again.startswith(stop)), None)
    if again is None or stop is None:
        return None
    prefix = again.removeprefix(stop)
    first = between.get((BEGINNING, "user"), "")
    begins, joins = between.get((BEGINNING, "system")), between.get(("system", "user"))
    if first.endswith(prefix):  # what it writes without a system message, perhaps one of its own
        prompt = first.removesuffix(prefix)
    elif begins is not None and joins is not None and joins.endswith(prefix):
        prompt = begins + SYSTEM + joins.removesuffix(prefix)
    else:
        return None
    return ChatWords(prompt=prompt, prefix=prefix, suffix=suffix, stop=stop)


def llama_cpp_lines(
    file: str, context: int, *, pieces: Pieces | None, stops: Sequence[str], has_template: bool, drop_bos: bool
) -> dict[str, str]:
    """Ways to run a file with llama.cpp, by name; the first is the usual one.

    drop_bos: the file adds BOS to plain text, and the template writes none: a conversation must not get one.
    """
    common = f"-m {shlex.quote(file)} -c {context}"
    if not has_template:
        return {"text": f"llama-cli {common} -no-cnv -n 128 -p 'Once upon a time'"}
    bos = " --override-kv tokenizer.ggml.add_bos_token=bool:false" if drop_bos else ""
    lines = {"chat": f"llama-cli {common} --jinja -cnv{bos}", "server": f"llama-server {common} --jinja{bos}"}
    words = None if pieces is None else chat_words(pieces, stops)
    if words is not None:
        prompt = f" -p {shlex.quote(words.prompt)}" if words.prompt else ""
        lines["words"] = (
            f"llama-cli {common} -no-cnv --interactive-first{bos}{prompt} --in-prefix {shlex.quote(words.prefix)} "
            f"--in-suffix {shlex.quote(words.suffix)} -r {shlex.quote(words.stop)}"
        )
    return lines


def ollama_line(file: str) -> str:
    """Make the model known to Ollama and talk to it."""
    name = shlex.quote(Path(file).stem.lower())
    return f"ollama create {name} -f Modelfile && ollama run {name}"


def upload_lines(folder: Path, repository: str) -> list[str]:
    """Commands for the two hubs; they are shown, never run."""
    place = shlex.quote(str(folder))
    return [
        f"hf upload {repository} {place} .",
        f"modelscope upload {repository} {place}",
    ]


def script(lines: Mapping[str, str]) -> str:
    """run.sh: `sh run.sh NAME` runs one of the lines in the folder of the file, `sh run.sh` the first."""
    first = next(iter(lines))
    cases = "".join(f"{name}) {line} ;;\n" for name, line in lines.items())
    names = " | ".join(lines)
    return (
        f'#!/bin/sh\n# sh run.sh [{names}]\ncd "$(dirname "$0")" || exit 1\ncase "${{1:-{first}}}" in\n{cases}'
        f'*) echo "sh run.sh [{names}]" >&2; exit 2 ;;\nesac\n'
    )
