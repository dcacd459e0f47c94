"""The form that other people will run: a directory read by transformers, or an adapter read by peft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch

from leveret.certify.form import Reader, Stops, numerics_of
from leveret.certify.thresholds import Numerics
from leveret.certify.zoo import Fixture
from leveret.chat.messages import messages_from
from leveret.engine.defaults import read_defaults
from leveret.engine.request import SamplingParams
from leveret.errors import LeveretError
from leveret.extras import require
from leveret.hub import model_under
from leveret.precision.nf4_layout import stored_bits
from leveret.tokenizer.files import Tokenizer
from leveret.weights.safetensors import read_json


@dataclass(frozen=True, kw_only=True)
class TransformersForm:
    """A directory run by transformers."""

    name: str
    path: Path
    numerics: Numerics
    model: Any
    tokenizer: Any
    own_tokenizer: Tokenizer
    sampling: SamplingParams | None
    reader: Reader = "transformers"
    remark: str = ""

    @property
    def context_tokens(self) -> int:
        """The longest sequence the model is meant for."""
        return int(self.model.config.max_position_embeddings)

    @property
    def stops(self) -> Stops:
        """What `generate` stops at."""
        given = self.model.generation_config.eos_token_id
        return Stops(declared=frozenset([given] if isinstance(given, int) else given or ()))

    def encode(self, fixture: Fixture) -> tuple[int, ...] | None:
        """Ids of a text (special-token text in it stays text) or of a conversation by `apply_chat_template`."""
        if fixture.text is not None:
            encoded = self.tokenizer(fixture.text, add_special_tokens=False, split_special_tokens=True)
            return tuple(encoded["input_ids"])
        if self.tokenizer.chat_template is None:
            return None
        try:
            ids = self.tokenizer.apply_chat_template(
                [message.to_dict() for message in messages_from(fixture.messages)],
                tools=list(fixture.tools) or None,
                add_generation_prompt=fixture.add_generation_prompt,
                return_dict=False,
            )
        except jinja2.TemplateError:
            return None
        return tuple(ids)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """One forward over all ids, without the cache."""
        answer: torch.Tensor = self.model(torch.tensor([list(ids)]), use_cache=False).logits[0].float()
        return answer

    def continue_greedily(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[int, ...]]:
        """By `generate`, one prompt at a time."""
        own = self.model.generation_config
        self.model.generation_config = type(own)()  # a penalty, suppressed tokens ... of the model would count as well
        try:
            return [self._continued(prompt, max_tokens) for prompt in prompts]
        finally:
            self.model.generation_config = own

    def _continued(self, prompt: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        ids = torch.tensor([list(prompt)])
        answer = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        return tuple(answer[0, ids.shape[1] :].tolist())

    def close(self) -> None:
        """Nothing to do."""


def from_transformers(reference: str, path: Path) -> TransformersForm:
    """Load a directory with transformers; MissingExtra when it is not installed, LeveretError when it cannot."""
    transformers = require("transformers", extra="transformers", purpose=f"the form {reference}")
    try:
        with _quietly(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype="auto").eval()
    except (ImportError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise LeveretError(f"transformers cannot load {path}: {error}") from error
    return TransformersForm(
        name=reference,
        path=path,
        numerics=_numerics(path, model),
        model=model,
        tokenizer=tokenizer,
        own_tokenizer=Tokenizer.load(path),
        sampling=read_defaults(path),
    )


def from_peft(reference: str, adapter: Path, base: Path | None = None) -> TransformersForm:
    """An adapter by peft, on the model of `base` or on the one that it names, read by transformers."""
    transformers = require("transformers", extra="transformers", purpose=f"the form {reference}")
    peft = require("peft", extra=None, purpose=f"the form {reference}")
    under = base or model_under(adapter)
    spoken = adapter if (adapter / "tokenizer.json").is_file() else under
    try:
        with _quietly(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(spoken, local_files_only=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(under, local_files_only=True, dtype="auto")
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
    except (ImportError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise LeveretError(f"peft cannot load {adapter} on {under}: {error}") from error
    return TransformersForm(
        name=reference,
        path=adapter,
        numerics=_numerics(under, model),
        model=adapted if adapted.peft_config["default"].is_prompt_learning else adapted.get_base_model(),
        tokenizer=tokenizer,
        own_tokenizer=Tokenizer.load(spoken),
        sampling=read_defaults(under),  # peft reads none beside an adapter
        reader="peft",
    )


def _numerics(path: Path, model: Any) -> Numerics:
    bits = stored_bits(read_json(model_under(path) / "config.json").get("quantization_config") or {})
    return numerics_of(model.dtype, bits)


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Without its progress bars, which would break into ours; they are as before afterwards."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
