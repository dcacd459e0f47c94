"""What MLC-LLM needs to make weights and an app of a model: two configs, its commands, and a forecast of the size.

    mlc-chat-config.json       the network, the quantization, how a conversation is written
    mlc-package-config.json    for `mlc_llm package` in the Android app: which model, how much memory
    build.sh                   mlc_llm convert_weight, then mlc_llm package

The weights are made by `mlc_llm convert_weight`, not here. How large they will be follows from its layout (its
group_quantization.py): a matrix of k inputs takes, for every output, k numbers of so many bits in words of 32 bits and
one scale for every group of inputs; the embedding and the head too, norms and routers stay whole.

    q4f16_1    4 bits, groups of 32, scales in float16: 4.5 bits a weight. HARE's 1.12 billion take 0.63 GB

A conversation is written from a role's prefix and what stands after a message; the template's pieces must be that.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.chat.template import ChatTemplate
from leveret.engine.defaults import read_defaults
from leveret.engine.request import SamplingParams
from leveret.errors import ConfigError
from leveret.export.commands import SYSTEM
from leveret.export.config import ExportConfig
from leveret.export.ollama import BEGINNING, END, Pieces
from leveret.model.config import ModelConfig
from leveret.model.families.rope_keys import rope_to_hf
from leveret.paths import atomic_write
from leveret.tokenizer.files import Tokenizer
from leveret.weights.companions import copy_companions
from leveret.weights.load import read_config
from leveret.weights.model_tensors import shapes_of

BITS = {"q4f16_1": (4, 16), "q4f16_0": (4, 16), "q4f32_1": (4, 32), "q3f16_1": (3, 16), "q0f16": (16, 16),
        "q0f32": (32, 32)}  # fmt: skip
"""Name -> (bits of a weight, bits of a scale and of what is not quantized)."""

GROUPS = {"q3f16_1": 40}
"""Inputs under one scale, where that is not 32."""

TYPES = {"mistral": "mistral", "llama": "llama", "mixtral": "mixtral", "aquila": "llama"}
"""Our families, and MLC-LLM's model types."""

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json",
                   "tokenizer_config.json")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MlcForecast:
    """What was written, and what will come of it."""

    weight_bytes: int
    running_bytes: int
    """Weights, keys and values of the whole context, and a prefill's activations."""
    context: int
    commands: Mapping[str, str]
    notes: tuple[str, ...]


def write_mlc(
    config: ExportConfig,
    source: Path,
    target: Path,
    name: str,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    pieces: Pieces | None,
) -> MlcForecast:
    """Write the configs and the script into `target`. ConfigError for a network that MLC-LLM does not have."""
    model = read_config(source)
    if model.family not in TYPES:
        raise ConfigError(f"MLC-LLM has no {model.family}", hint="export it with to=directory, which makes it a llama, "
                          "and then that with to=mlc")  # fmt: skip
    if model.rope.kind not in ("default", "dynamic", "llama3"):
        raise ConfigError(f"MLC-LLM's {TYPES[model.family]} has no RoPE of type {model.rope.kind}",
                          hint="serve it with llama.cpp (to=gguf) or vLLM (to=directory)")  # fmt: skip
    longest = model.max_position_embeddings  # where dynamic RoPE begins to change anything
    context = min(config.mlc_context, longest)
    copy_companions(source, target)
    conversation = None if template is None or pieces is None else conversation_of(template, pieces, tokenizer)
    notes = [] if conversation else ["MLC-LLM cannot write this model's conversations: its config says LM, plain text"]
    chat = chat_config(
        model, config.mlc_type, context, tokenizer, read_defaults(source), conversation or plain_conversation(tokenizer)
    )
    chat["tokenizer_files"] = [file for file in TOKENIZER_FILES if (target / file).is_file()]
    weights = weight_bytes(model, config.mlc_type)
    running = (
        weights + cache_bytes(model, config.mlc_type, context) + activation_bytes(model, chat["prefill_chunk_size"])
    )
    identity = f"{name}-{config.mlc_type}-MLC"
    _write_json(target / "mlc-chat-config.json", chat)
    _write_json(target / "mlc-package-config.json", package_config(identity, config.repository, running, chat))
    commands = commands_for(model, identity, config)
    start = '#!/bin/sh\nset -e\nMODEL="$(realpath "${1:?sh build.sh MODEL_DIRECTORY}")"\ncd "$(dirname "$0")"\n'
    atomic_write(target / "build.sh", start + "\n".join(commands.values()) + "\n")
    return MlcForecast(
        weight_bytes=weights, running_bytes=running, context=context, commands=commands, notes=tuple(notes)
    )


def weight_bytes(model: ModelConfig, kind: str) -> int:
    """The size of all tensors as MLC-LLM stores them."""
    bits, scale = BITS[kind]
    group = GROUPS.get(kind, 32)
    total = 0
    for name, shape in shapes_of(model).items():
        count = math.prod(shape)
        if len(shape) == 1 or bits >= 16 or name.endswith("mlp.gate.weight"):
            total += count * scale // 8
            continue
        columns = shape[-1]
        groups = -(-columns // group)
        words = groups * -(-group // (32 // bits))
        total += count // columns * (words * 4 + groups * scale // 8)
    return total


def cache_bytes(model: ModelConfig, kind: str, context: int) -> int:
    """Keys and values of one conversation that fills the context."""
    return 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * context * BITS[kind][1] // 8


def activation_bytes(model: ModelConfig, chunk: int) -> int:
    """What a prefill of one chunk needs at once, roughly: a layer's inputs and outputs, and one row of logits."""
    width = model.hidden_size * 4 + model.intermediate_size * 3
    return 2 * chunk * width + 4 * model.vocab_size


def chat_config(
    model: ModelConfig,
    kind: str,
    context: int,
    tokenizer: Tokenizer,
    sampling: SamplingParams,
    conversation: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of mlc-chat-config.json."""
    window = -1 if model.sliding_window is None else model.sliding_window
    chunk = min(1024, context)
    sizes: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "num_hidden_layers": model.num_hidden_layers,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.rms_norm_eps,
        "vocab_size": model.vocab_size,
        "position_embedding_base": model.rope.theta,
        "tie_word_embeddings": model.tie_word_embeddings,
        "context_window_size": context,
        "prefill_chunk_size": chunk,
        "tensor_parallel_shards": 1,
        "max_batch_size": 1,
    }
    if model.sliding_window is not None and model.sliding_window < context:
        sizes |= {"sliding_window_size": window, "attention_sink_size": 0, "context_window_size": -1}
    if model.rope.kind == "llama3":
        sizes["rope_scaling"] = rope_to_hf(model.rope)["rope_scaling"]
    if model.moe is not None:
        sizes |= {"num_local_experts": model.moe.num_experts, "num_experts_per_tok": model.moe.experts_per_token}
    return {
        "version": "0.1.0",
        "model_type": TYPES[model.family],
        "quantization": kind,
        "model_config": sizes,
        "vocab_size": model.vocab_size,
        "active_vocab_size": tokenizer.vocab_size,
        "context_window_size": sizes["context_window_size"],
        "sliding_window_size": sizes.get("sliding_window_size", -1),
        "prefill_chunk_size": chunk,
        "attention_sink_size": sizes.get("attention_sink_size", -1),
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "temperature": sampling.temperature,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "top_p": sampling.top_p or 1.0,
        "tokenizer_files": [],
        "tokenizer_info": {"token_postproc_method": _postprocessing(tokenizer), "prepend_space_in_encode": False,
                           "strip_space_in_decode": tokenizer.strips_first_space},
        "conv_template": dict(conversation),
        "pad_token_id": model.pad_token_id if model.pad_token_id is not None else 0,
        "bos_token_id": model.bos_token_id,
        "eos_token_id": list(sampling.stop_ids or model.eos_token_ids),
    }  # fmt: skip


def conversation_of(template: ChatTemplate, pieces: Pieces, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """MLC-LLM's way to say how a conversation is written, or None where it cannot say this one.

    It writes the system message (always: its own where the app gives none), for each turn the role's prefix, the
    message and what stands after it (one string for the user, another for the assistant), and last the assistant's
    prefix.
    """
    between = pieces.between
    answer, again = between.get(("user", END), ""), between.get(("assistant", "user"))
    first, begins, joins = (
        between.get(step) for step in ((BEGINNING, "user"), (BEGINNING, "system"), ("system", "user"))
    )
    answered = between.get(("user", "assistant"), "")
    if again is None or first is None or not answered.startswith(answer):
        return None
    user = _common_end([text for text in (again, first, joins) if text is not None])
    system, message = first.removesuffix(user), ""
    if begins is not None and joins is not None:
        around = (begins, joins.removesuffix(user))
        said = SYSTEM if begins and not system else system.removeprefix(around[0]).removesuffix(around[1])
        if not system or around[0] + said + around[1] == system:
            system, message = (around[0] + "{system_message}" + around[1], said) if said else ("", "")
    begun = answered.removeprefix(answer)  # Aquila's replies begin with a space that the model writes
    return {
        "name": "leveret",
        "system_template": system,
        "system_message": message,
        "add_role_after_system_message": True,
        "roles": {"user": user, "assistant": answer, "tool": user},
        "role_templates": {"user": "{user_message}", "assistant": begun + "{assistant_message}",
                           "tool": "{tool_message}"},
        "messages": [],
        "seps": ["", again.removesuffix(user)],
        "role_content_sep": "",
        "role_empty_sep": "",
        "stop_str": [text for text in template.stops if text not in tokenizer.special_ids],
        "stop_token_ids": list(template.stop_ids(tokenizer)),
        "function_string": "",
        "use_function_calling": False,
    }  # fmt: skip


def _common_end(texts: list[str]) -> str:
    """The longest text that all of these end with."""
    length = 0
    while length < min(map(len, texts)) and len({text[len(text) - length - 1] for text in texts}) == 1:
        length += 1
    return texts[0][len(texts[0]) - length :]


def plain_conversation(tokenizer: Tokenizer) -> dict[str, Any]:
    """Of a model that only continues text."""
    return {
        "name": "LM",
        "system_template": "",
        "system_message": "",
        "roles": {"user": "", "assistant": ""},
        "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"},
        "messages": [],
        "seps": [""],
        "stop_str": [],
        "stop_token_ids": [] if tokenizer.eos_id is None else [tokenizer.eos_id],
    }


def package_config(identity: str, repository: str, running: int, chat: Mapping[str, Any]) -> dict[str, Any]:
    """The content of mlc-package-config.json for Android."""
    owner = repository.partition("/")[0]
    overrides = {"prefill_chunk_size": chat["prefill_chunk_size"]}
    if chat["context_window_size"] > 0:
        overrides["context_window_size"] = chat["context_window_size"]
    entry = {
        "model": f"HF://{owner}/{identity}",
        "model_id": identity,
        "estimated_vram_bytes": running,
        "bundle_weight": True,
        "overrides": overrides,
    }
    return {"device": "android", "model_list": [entry]}


def commands_for(model: ModelConfig, identity: str, config: ExportConfig) -> dict[str, str]:
    """What makes weights and app of it; MLC-LLM and its sources must be there. $MODEL is the model's directory."""
    owner = config.repository.partition("/")[0]
    upload = f"then: hf upload {shlex.quote(f'{owner}/{identity}')} . ."
    kind = f"--model-type {TYPES[model.family]} --quantization {config.mlc_type}"
    return {
        "weights": f'mlc_llm convert_weight "$MODEL" {kind} -o .',
        "upload": f"echo {shlex.quote(upload)}",
        "app": 'cp mlc-package-config.json "$MLC_LLM_SOURCE_DIR/android/MLCChat/"; '
        "echo 'then, in android/MLCChat: mlc_llm package'",
    }


def _postprocessing(tokenizer: Tokenizer) -> str:
    return "byte_fallback" if tokenizer.strips_first_space else "byte_level"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
