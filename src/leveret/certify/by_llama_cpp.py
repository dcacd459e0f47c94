"""The form that most people will run: a GGUF file read by llama.cpp, through llama-cpp-python.

Conversations are rendered by the template in the file and read with special-token parsing; a BOS in them is the
template's. (llama.cpp's own server puts one in front of every conversation where the file asks for it in plain text,
unless it is told not to; then the certificate says so.) Keys and values are kept in float32, so that a
file in float32 is judged as exact; the products are llama.cpp's own (a file in float16 rounds activations to it, one
in blocks of 8 bits rounds them to such blocks).

llama.cpp gives no hidden states. To say which tensor of a file is wrong, the file is read by our own reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from leveret.certify.form import Reader, Stops
from leveret.certify.gguf_model import model_in, numerics_in, tokenizer_in
from leveret.certify.thresholds import Numerics
from leveret.certify.zoo import Fixture
from leveret.chat.messages import messages_from
from leveret.engine.request import SamplingParams
from leveret.errors import ConfigError, LeveretError
from leveret.extras import require
from leveret.model.decoder import Decoder
from leveret.tokenizer.files import Tokenizer
from leveret.weights.gguf_file import GgufFile, open_gguf

MOST_CONTEXT = 2048
"""The context that is set up at most: llama.cpp keeps logits for all of it."""

QUESTION = Fixture(name="a question", messages=({"role": "user", "content": "?"},))


@dataclass(frozen=True)
class LlamaCppForm:
    """A GGUF file run by llama.cpp."""

    name: str
    path: Path
    file: GgufFile
    llama: Any
    template: Any
    reader: Reader = "llama.cpp"
    sampling: SamplingParams | None = None

    @property
    def context_tokens(self) -> int:
        """The model's own, or MOST_CONTEXT; llama.cpp sets up a little more."""
        return _context(self.file)

    @cached_property
    def numerics(self) -> Numerics:
        """By the types of the file's matrices."""
        return numerics_in(self.file)

    @cached_property
    def model(self) -> Decoder | None:
        """What Leveret's reader makes of the file; None for a file that it does not read."""
        try:
            return model_in(self.file, torch.float32)
        except LeveretError:
            return None

    @cached_property
    def own_tokenizer(self) -> Tokenizer:
        """The tokenizer in the file; ConfigError when it cannot be rebuilt."""
        tokenizer = tokenizer_in(self.file)
        if tokenizer is None:
            raise ConfigError(
                f"the tokenizer in {self.path} is one that only llama.cpp reads",
                hint="name the model directory it was made of first, and the file after it",
            )
        return tokenizer

    @cached_property
    def stops(self) -> Stops:
        """The file's end of sequence and of turn; llama.cpp adds every token that looks like one."""
        library, vocabulary = require_llama_cpp(), self._vocabulary
        keys = [self.file.keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        ends = {index for index in range(self.llama.n_vocab()) if library.llama_vocab_is_eog(vocabulary, index)}
        return Stops(declared=frozenset(int(key) for key in keys if key is not None), implied=frozenset(ends))

    @cached_property
    def remark(self) -> str:
        """A BOS that llama.cpp's server adds to conversations, where the template writes none."""
        text = None if self.template is None else self._render(QUESTION)
        adds = require_llama_cpp().llama_vocab_get_add_bos(self._vocabulary)
        if text is None or not adds or text.startswith(self._token("bos") or "\0"):
            return ""
        return (
            "its template writes no BOS, but llama.cpp's programs put one in front of a conversation; "
            "start them with --override-kv tokenizer.ggml.add_bos_token=bool:false, as run.sh of the export does"
        )

    def encode(self, fixture: Fixture) -> tuple[int, ...] | None:
        """Ids of a text (special-token text in it stays text) or of a conversation by the template in the file."""
        if fixture.text is not None:
            return tuple(self.llama.tokenize(fixture.text.encode(), add_bos=False, special=False))
        if self.template is None:
            return None
        text = self._render(fixture)
        return None if text is None else tuple(self.llama.tokenize(text.encode(), add_bos=False, special=True))

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """One evaluation of all ids, in batches of llama.cpp's size."""
        self.llama.reset()
        self.llama.eval(list(ids))
        return torch.from_numpy(np.array(self.llama.scores[: len(ids)], dtype=np.float32))

    def continue_greedily(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[int, ...]]:
        """Token by token through its cache, one prompt at a time."""
        continued = []
        for prompt in prompts:
            self.llama.reset()
            fresh, answer = list(prompt), list[int]()
            while len(answer) < max_tokens:
                self.llama.eval(fresh)
                fresh = [int(self.llama.scores[self.llama.n_tokens - 1].argmax())]
                answer += fresh
            continued.append(tuple(answer))
        return continued

    def close(self) -> None:
        """Free llama.cpp's memory."""
        self.llama.close()

    def _render(self, fixture: Fixture) -> str | None:
        self.template.add_generation_prompt = fixture.add_generation_prompt
        messages = [message.to_dict() for message in messages_from(fixture.messages)]
        try:
            return str(self.template(messages=messages, tools=list(fixture.tools) or None).prompt)
        except (jinja2.TemplateError, ValueError):  # it raises ValueError where a template says raise_exception
            return None

    @property
    def _vocabulary(self) -> Any:
        return require_llama_cpp().llama_model_get_vocab(self.llama.model)

    def _token(self, role: str) -> str:
        return _token(self.file, role)


def from_llama_cpp(reference: str, path: Path) -> LlamaCppForm:
    """Load a file with llama.cpp; MissingExtra when it is not installed, LeveretError when it cannot read the file."""
    library, file = require_llama_cpp(), open_gguf(path)
    try:
        llama = library.Llama(
            str(path),
            n_ctx=_context(file),
            n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(),
            type_k=0,  # float32
            type_v=0,
            logits_all=True,
            verbose=False,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise LeveretError(f"llama.cpp cannot load {path}: {error}") from error
    source = file.keys.get("tokenizer.chat_template")
    formatter = require("llama_cpp.llama_chat_format", extra="llama-cpp", purpose="a template in a GGUF file")
    template = None if not source else formatter.Jinja2ChatFormatter(source, _token(file, "eos"), _token(file, "bos"))
    return LlamaCppForm(name=reference, path=path, file=file, llama=llama, template=template)


def require_llama_cpp() -> Any:
    """llama-cpp-python, or MissingExtra."""
    return require("llama_cpp", extra="llama-cpp", purpose="reading a GGUF file as llama.cpp does")


def _context(file: GgufFile) -> int:
    said = file.keys.get(f"{file.keys.get('general.architecture')}.context_length", MOST_CONTEXT)
    return min(int(said), MOST_CONTEXT)


def _token(file: GgufFile, role: str) -> str:
    """The text of a special token of the file; empty when it has none."""
    index = file.keys.get(f"tokenizer.ggml.{role}_token_id")
    return "" if index is None else str(file.keys["tokenizer.ggml.tokens"][index])
