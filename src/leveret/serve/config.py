"""ServeConfig: which model answers, where, and how much it takes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from leveret.config import Config, Positional
from leveret.engine.backends.names import OWN, VLLM, check_keys, checked_server
from leveret.engine.config import EngineConfig
from leveret.precision.names import InMemory


class ServeConfig(Config):
    """Answer at an OpenAI-compatible endpoint."""

    model: Annotated[str, Positional(0, places=True)]
    """Model directory, or a name on the Hugging Face hub."""
    host: str = "127.0.0.1"
    """Address to listen at. The default is this machine only; 0.0.0.0 lets the whole network in."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen at; 0 takes a free one."""
    served_model_name: str | None = None
    """The model's name in the API; by default the name of its directory."""
    adapter: list[str] = Field(default_factory=list)
    """Adapters to serve beside the model, as name=folder each; a request chooses one by `model`."""
    chat_template: Path | None = None
    """A Jinja file to use in place of the model's own chat template."""
    response_role: str = "assistant"
    """Who speaks in the answers to chats (Huozi's clients expect 助手)."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of a prompt and its answer together; by default what the model can hold."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights in memory; by default as stored."""
    device: str = "cpu"
    """Where the model runs."""
    quantize: InMemory | None = None
    """Round the matrices to so few bits as they are loaded; by default as stored. Storing them so starts sooner."""
    backend: Annotated[str, AfterValidator(checked_server)] = OWN
    """Who runs it: leveret, transformers, llama.cpp (the model is a GGUF file then), the URL of a server with it; vllm.

    vllm starts vLLM's own server in place of this one, with the flags that say the same.
    """
    tensor_parallel_size: Annotated[int, Field(ge=1)] | None = None
    """GPUs that vLLM spreads the model over; for backend=vllm."""
    api_key: str | None = Field(default=None, repr=False)
    """If set, requests must carry it as `Authorization: Bearer <key>`; several are separated by commas. The environment
    variable LEVERET_API_KEY does the same, and does not show in the list of processes."""
    allow_origins: list[str] = Field(default_factory=list)
    """Origins whose web pages may use the API (https://chat.example, or * for all); by default none but our own."""
    engine: EngineConfig = EngineConfig()
    """How the engine of the model, and of each adapter, works."""
    max_concurrent_requests: Annotated[int, Field(ge=1)] = 32
    """Answers generated at the same time; more wait in a queue."""
    max_waiting_requests: Annotated[int, Field(ge=0)] = 256
    """Length of that queue; beyond it a request is refused with status 429."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 4_000_000
    """Largest request body; beyond it a request is refused with status 413."""
    max_body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Longest time a body may take to arrive; beyond it a request is refused with status 408."""
    max_answer_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens that a request may ask for; by default what the context holds."""
    max_answer_seconds: Annotated[float, Field(gt=0)] | None = 600.0
    """Longest time from a request to the end of its answer; beyond it the answer ends with an error, status 503."""
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Told to stop, the server refuses new requests and gives the answers under way so long to end and be read."""
    runs: Path | None = None
    """Show the runs in this folder at /runs: curves, label X-ray, certificate, evaluation. Nothing is ever written."""
    page: bool = True
    """Offer a page to talk to the model at /gradio, where Gradio is installed (`pip install "leveret[web]"`)."""
    ask: list[str] = Field(default_factory=list)
    """Answer these through the endpoint, on a free port, with streaming; print the answers and stop."""
    output: Path | None = None
    """Folder to write the answers to `ask` to, as answers.jsonl."""

    @property
    def api_keys(self) -> tuple[str, ...]:
        """The keys, any of which opens the server."""
        return tuple(key for each in (self.api_key or "").split(",") if (key := each.strip()))

    @property
    def adapters(self) -> dict[str, str]:
        """The folders of the adapters by their names."""
        return dict(each.partition("=")[::2] for each in self.adapter)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for each in self.adapter:
            name, _, folder = each.partition("=")
            if not (name and folder):
                raise ValueError(f"adapter: {each!r} is not name=folder")
        if len(self.adapters) < len(self.adapter):
            raise ValueError("adapter: two adapters have one name")
        if self.tensor_parallel_size is not None and self.backend != VLLM:
            raise ValueError(f"tensor_parallel_size is for backend=vllm, and the backend is {self.backend}")
        if self.adapter and self.backend not in (OWN, VLLM):
            raise ValueError(f"adapters are for backend=leveret and vllm; {self.backend} serves one model")
        if self.backend != VLLM:
            check_keys(
                self.backend,
                engine=self.engine,
                dtype=self.dtype,
                device=self.device,
                max_model_len=self.max_model_len,
            )
        if self.api_key is not None and not self.api_keys:
            raise ValueError("api_key is empty: leave it out for a server without a key")
        return self
