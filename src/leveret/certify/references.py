"""How forms are written: what stands before a path says who reads it.

    PATH                  a model directory, read by Leveret; a quantized one or an adapter too; or a hub name
    PATH                  a training checkpoint, or a folder of them: then the newest
    FILE.gguf             a GGUF file, read by Leveret
    transformers:PATH     the directory as transformers reads it
    peft:PATH             the adapter as peft reads it
    llama.cpp:FILE.gguf   the file as llama.cpp reads it
    http://HOST/v1        a running server that speaks the OpenAI API

`MODEL+ADAPTER` in place of a path is an adapter on the model that you name, not on the one that it names itself.
"""

from __future__ import annotations

from pathlib import Path, PurePath

TRANSFORMERS_PREFIX = "transformers:"
PEFT_PREFIX = "peft:"
LLAMA_CPP_PREFIX = "llama.cpp:"
SERVER_PREFIXES = ("http://", "https://")


def split_reference(reference: str) -> tuple[str, str]:
    """The prefix that names a reader (empty for our own), and the path."""
    for prefix in (TRANSFORMERS_PREFIX, PEFT_PREFIX, LLAMA_CPP_PREFIX):
        if reference.startswith(prefix):
            return prefix, reference.removeprefix(prefix)
    return "", reference


def split_adapter(path: str) -> tuple[str, str | None]:
    """`MODEL+ADAPTER` -> both; a path that exists as it is written has no adapter beside it."""
    model, plus, adapter = path.rpartition("+")
    if not plus or Path(path).exists() or not Path(adapter).is_dir():
        return path, None
    return model, adapter


def is_server(reference: str) -> bool:
    """Whether the form is a running server."""
    return reference.startswith(SERVER_PREFIXES)


def short_form(reference: str) -> str:
    """A reference without the folders above the last two: a card is published, a disk's layout is not."""
    if is_server(reference):
        return reference.partition("@")[2] or reference
    prefix, path = split_reference(reference)
    return prefix + "+".join("/".join(PurePath(part).parts[-2:]) for part in split_adapter(path) if part)
