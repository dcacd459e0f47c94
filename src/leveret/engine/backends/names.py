"""What `backend` may say, wherever a model is run; without torch, for configs.

leveret         our own engine (the default)
transformers    the model as transformers defines and runs it
llama.cpp       a GGUF file, through llama-cpp-python
http://...      a server that speaks the OpenAI API: vLLM, llama.cpp's, Leveret's, another machine's
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from leveret.engine.config import EngineConfig
from leveret.spelling import suggest

OWN, TRANSFORMERS, LLAMA_CPP = "leveret", "transformers", "llama.cpp"
LOCAL = (OWN, TRANSFORMERS, LLAMA_CPP)
VLLM = "vllm"
"""What `leveret serve` may hand everything to; what it then serves is a backend by its URL."""


def is_url(name: str) -> bool:
    """Whether a backend is a server."""
    return name.startswith(("http://", "https://"))


def checked_name(name: str) -> str:
    """The name itself; ValueError when there is no such backend."""
    if name in LOCAL or is_url(name):
        return name
    meant = suggest(name, LOCAL)
    guess = f" (did you mean {meant}?)" if meant else ""
    raise ValueError(f"backend {name!r} is not known{guess}: {', '.join(LOCAL)}, or the URL of a server")


def checked_server(name: str) -> str:
    """A name for `leveret serve`: one of the others, or vllm."""
    return name if name == VLLM else checked_name(name)


def check_keys(
    backend: str, *, engine: EngineConfig | None = None, dtype: object = None, device: str = "cpu", **own: object
) -> None:
    """ValueError that names the keys which another program than our engine would never hear of.

    `own`: further keys that only our engine obeys, by their names, and None where they were not given.
    """
    if backend == OWN:
        return
    unheard = [f"engine.{key}" for key in ([] if engine is None else engine.changed)]
    unheard += [key for key, value in own.items() if value is not None]
    if backend != TRANSFORMERS:  # which loads the weights as it is told
        unheard += ["dtype"] * (dtype is not None) + ["device"] * (device != "cpu")
    if unheard:
        are = "is" if len(unheard) == 1 else "are"
        raise ValueError(
            f"{', '.join(unheard)} {are} for our own engine, and the backend is {backend}: "
            f"leave {'it' if len(unheard) == 1 else 'them'} out, or run the model with backend={OWN}"
        )


BackendName = Annotated[str, AfterValidator(checked_name)]
