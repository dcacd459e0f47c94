"""Whether other programs will load a model directory and get the same conversation out of it: the check list.

Each check is a sentence about the files as they lie there, not about what we meant to write. The requirements are those
that the programs document or show in their sources:

    transformers   config.json with a known model_type and no code; generation_config.json valid; safetensors whole
    vLLM           an architecture and a head size it has kernels for; stops at generation_config.json's eos_token_id
    webui          text-generation-webui reads chat_template.jinja, else tokenizer_config.json; puts the texts of eos
                   and bos in place of their names, takes `raise_exception` out, and knows no `generation` block
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from leveret.chat.messages import Message
from leveret.chat.template import ChatTemplate
from leveret.errors import LeveretError
from leveret.tokenizer.files import Tokenizer
from leveret.weights.load import read_config
from leveret.weights.reader import WeightReader
from leveret.weights.safetensors import read_json

NATIVE = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM"}
"""Families that transformers, vLLM and text-generation-webui have themselves."""

VLLM_HEAD_SIZES = (32, 64, 80, 96, 112, 120, 128, 192, 256)
"""Head sizes of vLLM's attention kernels."""

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
CONVERSATION = (("user", "Hi"), ("assistant", "野兔。"), ("user", "🐇?"))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    name: str
    passed: bool
    said: str
    """The figures, or what is wrong and what it does."""


def check_directory(folder: Path) -> list[Finding]:
    """All checks, in order; one that breaks is a finding too."""
    return [finding for check in CHECKS for finding in _run(check, folder)]


def _run(check: Callable[[Path], Iterator[Finding]], folder: Path) -> Iterator[Finding]:
    try:
        yield from check(folder)
    except (LeveretError, OSError, ValueError, KeyError, TypeError) as error:
        yield Finding(name=check.__name__.strip("_"), passed=False, said=f"{type(error).__name__}: {error}")


def _config(folder: Path) -> Iterator[Finding]:
    values = read_json(folder / "config.json")
    kind, classes = str(values.get("model_type")), values.get("architectures")
    yield _finding("architecture", NATIVE.get(kind) in (classes or ()), f"{kind}, {classes}",
                   "is none that transformers and vLLM have themselves")  # fmt: skip
    yield _finding("no code", "auto_map" not in values and not list(folder.glob("*.py")), "neither auto_map nor .py",
                   "brings code; programs ask for trust_remote_code or refuse")  # fmt: skip
    config = read_config(folder)
    yield _finding("head size (vLLM)", config.head_dim in VLLM_HEAD_SIZES, str(config.head_dim),
                   f"is not among those of vLLM's kernels: {', '.join(map(str, VLLM_HEAD_SIZES))}")  # fmt: skip


def _weights(folder: Path) -> Iterator[Finding]:
    values = read_json(folder / "config.json")
    config = read_config(folder)
    reader = WeightReader(folder)
    embedding = next(stored for name, stored in reader.tensors.items() if name.endswith("embed_tokens.weight"))
    yield _finding("safetensors", all(stored.file.endswith(".safetensors") for stored in reader.tensors.values()),
                   f"{len(reader.tensors)} tensors in {len({s.file for s in reader.tensors.values()})} files, as the "
                   "index says", "are .bin files, which vLLM and transformers load only on request")  # fmt: skip
    dtype = str(values.get("dtype") or values.get("torch_dtype"))
    yield _finding("dtype", dtype == str(embedding.dtype).removeprefix("torch."), dtype,
                   f"in config.json, {embedding.dtype} in the files")  # fmt: skip
    yield _finding("rows", embedding.shape[0] == config.vocab_size, f"{config.vocab_size:,} ids in config.json",
                   f"but {embedding.shape[0]:,} rows in the embedding")  # fmt: skip


def _generation(folder: Path) -> Iterator[Finding]:
    values, said = read_json(folder / "config.json"), read_json(folder / "generation_config.json")
    vocabulary = values["vocab_size"]
    ids = {key: _ids(said.get(key)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    wrong = {key: found for key, found in ids.items() if any(not 0 <= index < vocabulary for index in found)}
    yield _finding("token ids", not wrong, "within the vocabulary", f"{wrong} lie outside of {vocabulary:,} ids")
    same = set(ids["eos_token_id"]) == set(_ids(values.get("eos_token_id")))
    yield _finding("eos ids", same and bool(ids["eos_token_id"]), f"{ids['eos_token_id']}, in both configs",
                   f"in generation_config.json, {values.get('eos_token_id')} in config.json")  # fmt: skip
    sampling = [key for key in SAMPLING if said.get(key) is not None]
    idle = sampling if not said.get("do_sample") else []
    yield _finding("sampling", not idle, "as generation_config.json says",
                   f"{', '.join(idle)} without do_sample: transformers does not sample, vLLM does")  # fmt: skip


def _tokenizer(folder: Path) -> Iterator[Finding]:
    tokenizer, values = Tokenizer.load(folder), read_json(folder / "config.json")
    settings = read_json(folder / "tokenizer_config.json")
    yield _finding("tokenizer", tokenizer.vocab_size <= values["vocab_size"], f"{tokenizer.vocab_size:,} ids",
                   f"but the model has {values['vocab_size']:,} rows")  # fmt: skip
    roles = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    wrong = {key: index for key, index in roles.items()
             if index is not None and _ids(values.get(key)) and index not in _ids(values.get(key))}  # fmt: skip
    yield _finding("special tokens", not wrong, ", ".join(tokenizer.special_tokens.values()) or "none",
                   f"of tokenizer_config.json are {wrong}, of config.json others")  # fmt: skip
    longest = settings.get("model_max_length")
    yield _finding("model_max_length", isinstance(longest, int) and longest <= 10**9, str(longest),
                   "does not say where a text must end")  # fmt: skip


def _template(folder: Path) -> Iterator[Finding]:
    file, settings = folder / "chat_template.jinja", read_json(folder / "tokenizer_config.json")
    if not file.is_file() and not settings.get("chat_template"):
        return
    source = file.read_text("utf-8") if file.is_file() else ""
    yield _finding("template, both places", source == settings.get("chat_template"), f"{len(source):,} characters",
                   "differ: chat_template.jinja and tokenizer_config.json")  # fmt: skip
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate(source, variables=tokenizer.special_tokens)
    ours = _rendered(template, tokenizer)
    theirs = as_webui_renders(source, settings)
    yield _finding("template (webui)", theirs == ours, "renders there as here", f"renders as {theirs[:80]!r}")
    stops = template.stop_ids(tokenizer)
    told = _ids(read_json(folder / "generation_config.json").get("eos_token_id"))
    missing = [index for index in stops if index not in told]
    yield _finding("a reply ends (vLLM)", bool(template.stops) and not missing,
                   " ".join(map(repr, template.stops)) or "no stop",
                   f"{missing} end a reply, and generation_config.json does not say so" if missing else
                   "the template writes nothing after a reply, so replies go on until they are cut off")  # fmt: skip


def as_webui_renders(source: str, settings: dict[str, Any]) -> str:
    """A conversation as text-generation-webui writes it; the error's text where it cannot."""
    for key in ("eos_token", "bos_token"):
        if value := settings.get(key):
            source = source.replace(key, "'{}'".format(value["content"] if isinstance(value, dict) else value))
    source = re.sub(r"\{\{-?\s*raise_exception\(.*?\)\s*-?\}\}", "", source, flags=re.DOTALL)
    source = re.sub(r"raise_exception\([^)]*\)", "''", source)
    source = re.sub(r"{% if add_generation_prompt %}.*", "", source, flags=re.DOTALL)
    messages = [{"role": role, "content": content} for role, content in CONVERSATION]
    try:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(source).render(messages=messages, add_generation_prompt=True)
    except JinjaError as error:
        return f"{type(error).__name__}: {error}"


def _rendered(template: ChatTemplate, tokenizer: Tokenizer) -> str:
    messages = [Message(role=role, content=content) for role, content in CONVERSATION]
    return template.render(messages, add_generation_prompt=True, variables=tokenizer.special_tokens).text


def _finding(name: str, passed: bool, figures: str, otherwise: str) -> Finding:
    return Finding(name=name, passed=passed, said=figures if passed else f"{figures}: {otherwise}")


def _ids(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


CHECKS = (_config, _weights, _generation, _tokenizer, _template)
