"""Forms that our own decoder and engine run: directories, quantized ones, adapters, GGUF files, training checkpoints.

A checkpoint holds float32 masters in one flat tensor (`trainer/checkpoint.py`); its architecture and tokenizer are
those of the model directory in a folder above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from leveret.certify.form import NO_ID, Reader, Stops, numerics_of
from leveret.certify.gguf_model import model_in, numerics_in, tokenizer_in
from leveret.certify.references import LLAMA_CPP_PREFIX
from leveret.certify.thresholds import Numerics
from leveret.certify.zoo import Fixture
from leveret.chat.messages import messages_from
from leveret.chat.template import ChatTemplate, template_for
from leveret.engine.defaults import read_defaults
from leveret.engine.engine import Engine
from leveret.engine.request import Request, SamplingParams
from leveret.errors import CheckpointError, RequestError, TemplateError, WeightsError
from leveret.hub import is_adapter, model_under
from leveret.model.decoder import Decoder
from leveret.paths import sha256_file
from leveret.precision.nf4_layout import stored_bits
from leveret.tokenizer.files import Tokenizer
from leveret.trainer.snapshot import Manifest
from leveret.weights.adapter import TENSORS
from leveret.weights.adapter_load import load_adapter
from leveret.weights.companions import first_with
from leveret.weights.gguf_file import open_gguf
from leveret.weights.load import load_model, read_config
from leveret.weights.safetensors import read_json


@dataclass(frozen=True, kw_only=True)
class LeveretForm:
    """A form run by our own decoder and engine."""

    name: str
    reader: Reader
    path: Path
    numerics: Numerics
    model: Decoder
    own_tokenizer: Tokenizer
    template: ChatTemplate | None
    stops: Stops
    sampling: SamplingParams | None = None
    remark: str = ""

    @property
    def context_tokens(self) -> int:
        """The longest sequence the model is meant for."""
        return self.model.config.max_position_embeddings

    def encode(self, fixture: Fixture) -> tuple[int, ...] | None:
        """Ids of a text or conversation; special-token text in it stays text."""
        if fixture.text is not None:
            return tuple(self.own_tokenizer.encode(fixture.text))
        if self.template is None:
            return None
        try:
            encoded = self.template.encode(
                self.own_tokenizer,
                messages_from(fixture.messages),
                tools=list(fixture.tools) or None,
                add_generation_prompt=fixture.add_generation_prompt,
            )
        except (TemplateError, RequestError):
            return None
        return tuple(encoded.ids)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """One forward over all ids, without the cache."""
        answer: torch.Tensor = self.model(torch.tensor([list(ids)]))[0].float()
        return answer

    def continue_greedily(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[int, ...]]:
        """By the engine, batched, with the KV cache."""
        params = SamplingParams(max_tokens=max_tokens)
        requests = [Request(prompt_ids=tuple(prompt), params=params) for prompt in prompts]
        engine = Engine(self.model)
        try:
            return [completion.ids for completion in engine.generate(requests)]
        except WeightsError:  # of one of them at least
            return [_continued_alone(engine, request) for request in requests]

    def close(self) -> None:
        """Nothing to do."""


def from_directory(reference: str, path: Path, adapter: Path | None = None) -> LeveretForm:
    """A model directory, quantized or not; with the adapter of a folder on it, or that folder by itself."""
    model, under = load_model(path, adapter=adapter), model_under(path)
    quantization = read_json(under / "config.json").get("quantization_config") or {}
    folders = (*([adapter] if adapter else ()), path, under)  # an adapter brings what differs from its model
    return _form(
        reference,
        adapter or path,
        model,
        Tokenizer.load(first_with("tokenizer.json", folders)),
        numerics_of(model.norm.weight.dtype, stored_bits(quantization)),
        _declared_stops(settings := first_with("generation_config.json", folders), model),
        read_defaults(settings),
    )


def from_gguf(reference: str, path: Path) -> LeveretForm:
    """A GGUF file by our own reader; WeightsError when it cannot read the file or rebuild its tokenizer."""
    file = open_gguf(path)
    numerics, tokenizer = numerics_in(file), tokenizer_in(file)
    if tokenizer is None:
        raise WeightsError(
            f"{path} has no tokenizer that can be rebuilt here", hint=f"llama.cpp reads it: {LLAMA_CPP_PREFIX}{path}"
        )
    # Blocks are decoded to numbers that float16 need not hold.
    model = model_in(file, None if numerics.bits is None else torch.float32)
    ends = [file.keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    declared = frozenset(int(end) for end in ends if end is not None)
    return _form(reference, path, model, tokenizer, numerics, declared)


def _continued_alone(engine: Engine, request: Request) -> tuple[int, ...]:
    try:
        (completion,) = engine.generate([request])
    except WeightsError:
        return (NO_ID,) * request.params.max_tokens
    return completion.ids


def newest_checkpoint(folder: Path) -> Path | None:
    """`folder` itself if it is a checkpoint, or the newest one in it (a run's `checkpoints/`); else None."""
    if (folder / "manifest.json").is_file():
        return folder
    own = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return max((path for path in own if (path / "manifest.json").is_file()), default=None)


def from_checkpoint(reference: str, path: Path) -> LeveretForm:
    """A training checkpoint; CheckpointError when it is damaged, partial, or its model directory is not found.

    One that trains an adapter is put on the model under the run's adapter/.
    """
    masters = _masters(path)
    has_adapter = any(name.endswith((".lora_A", ".prefix")) for name in masters)
    beside = _model_beside(path, ("adapter",) if has_adapter else ("", "model"))
    model = _adapted(beside) if has_adapter else Decoder(read_config(beside))
    model.eval().requires_grad_(False)
    places = dict(model.named_parameters())
    missing = sorted(set(masters) - set(places) if has_adapter else set(places) - set(masters))
    if missing:
        raise CheckpointError(
            f"{path} and {beside} do not belong together: {len(missing)} parameters are in one only, first {missing[0]}"
            if has_adapter
            else f"{path} trains only a part of the model: {len(missing)} parameters are not in it, first {missing[0]}",
            hint=f"certify the saved model instead: {beside}",
        )
    for name in places.keys() & masters.keys():
        places[name].copy_(masters[name])
    folders = (beside, model_under(beside))
    tokenizer = Tokenizer.load(first_with("tokenizer.json", folders))
    settings = first_with("generation_config.json", folders)
    declared, numerics = _declared_stops(settings, model), numerics_of(torch.float32, None)
    if has_adapter:
        numerics = replace(numerics, saved_as=_stored_dtype(beside / TENSORS))
    form = _form(reference, path, model, tokenizer, numerics, declared, read_defaults(settings))
    return replace(form, reader="checkpoint")


def _masters(path: Path) -> dict[str, torch.Tensor]:
    """Every trained parameter of a checkpoint, by name, in float32."""
    manifest = Manifest.read(path)
    for name, expected in manifest.files.items():
        if not (path / name).is_file() or sha256_file(path / name) != expected:
            raise CheckpointError(f"{path}: {name} is missing or damaged (its SHA-256 is not the manifest's)")
    flat = next(state["masters"] for name in manifest.files if "masters" in (state := load_file(path / name)))
    return {
        name: flat[start : start + torch.Size(shape).numel()].view(shape)
        for name, (start, *shape) in manifest.layout.items()
    }


def _adapted(adapter: Path) -> Decoder:
    """The model under an adapter with the adapter on it, in float32."""
    model = load_model(model_under(adapter), dtype=torch.float32)
    load_adapter(model, adapter, rounded=False)
    return model


def _stored_dtype(adapter: Path) -> str:
    """What an adapter's numbers were rounded to when it was saved."""
    with safe_open(adapter, framework="pt") as content:
        stored = {content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118  # no mapping
    return "float32" if stored == {"F32"} else "bfloat16"


def _model_beside(checkpoint: Path, names: tuple[str, ...]) -> Path:
    """The directory that a checkpoint belongs to: of one of these names in a folder above it ("": that folder)."""
    for folder in checkpoint.resolve().parents[:3]:
        for candidate in (folder / name for name in names):
            if (candidate / "config.json").is_file() or is_adapter(candidate):
                return candidate
    raise CheckpointError(
        f"{checkpoint}: no config.json lies in the folders above it, so its architecture is not known",
        hint="leave a checkpoint in the folder of its run",
    )


def _form(
    reference: str,
    path: Path,
    model: Decoder,
    tokenizer: Tokenizer,
    numerics: Numerics,
    declared_stops: frozenset[int],
    sampling: SamplingParams | None = None,
) -> LeveretForm:
    template = None if tokenizer.chat_template is None else template_for(tokenizer)
    implied = {tokenizer.eos_id} if tokenizer.eos_id is not None else set[int]()
    implied.update(() if template is None else template.stop_ids(tokenizer))
    return LeveretForm(
        name=reference,
        reader="leveret",
        path=path,
        numerics=numerics,
        model=model,
        own_tokenizer=tokenizer,
        template=template,
        stops=Stops(declared=declared_stops, implied=frozenset(implied)),
        sampling=sampling,
    )


def _declared_stops(folder: Path, model: Decoder) -> frozenset[int]:
    """What generation_config.json names; config.json where there is none, as transformers has it."""
    if (folder / "generation_config.json").is_file():
        return frozenset(read_defaults(folder).stop_ids)
    return frozenset(model.config.eos_token_ids)
