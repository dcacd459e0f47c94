"""`leveret serve backend=vllm`: the same config, as the command that makes vLLM serve the model on its GPUs.

vLLM is not imported: it brings its own PyTorch and often lives in an environment of its own. Its program is looked for
on the PATH and takes the place of this process. Keys it has no flag for are named.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from leveret.console import Console
from leveret.errors import ConfigError, MissingExtra
from leveret.serve.config import ServeConfig

KEY_VARIABLE = "VLLM_API_KEY"
"""Where vLLM looks for the key; unlike a flag it does not show in the list of processes."""

UNSAID = (
    *("max_waiting_requests", "max_body_bytes", "max_body_seconds", "max_answer_tokens", "max_answer_seconds"),
    *("drain_seconds", "device", "quantize", "page"),
)
"""What vLLM decides itself; our defaults are not missed, but a value somebody gave is."""

OURS = ("ask", "output", "runs")
"""What only our own server does."""


@dataclass(frozen=True, kw_only=True)
class VllmCommand:
    """A command, and what it cannot say."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """Variables besides those of this process."""
    left_out: tuple[str, ...]
    """Keys with a value other than their default that have no flag."""

    def __str__(self) -> str:
        return shlex.join(self.argv)


def vllm_command(config: ServeConfig) -> VllmCommand:
    """The command for a config. ConfigError for keys that only our own server knows."""
    given = [name for name in OURS if name in _given(config)]
    if given:
        raise ConfigError(f"{', '.join(given)}: only Leveret's own server does this", hint="use backend=leveret")
    keys = config.api_keys
    argv = ["vllm", "serve", config.model, "--host", config.host, "--port", str(config.port)]
    argv += _flag("--served-model-name", config.served_model_name)
    argv += _flag("--dtype", config.dtype)
    argv += _flag("--max-model-len", config.max_model_len)
    argv += _flag("--max-num-seqs", config.max_concurrent_requests)
    argv += _flag("--tensor-parallel-size", config.tensor_parallel_size)
    argv += _flag("--chat-template", config.chat_template)
    argv += _flag("--response-role", config.response_role)
    if len(keys) > 1:
        argv += ["--api-key", *keys]
    if config.allow_origins:
        argv += ["--allowed-origins", json.dumps(config.allow_origins)]
    if config.adapters:
        argv += ["--enable-lora", "--lora-modules", *(f"{name}={folder}" for name, folder in config.adapters.items())]
    argv += _engine_flags(config)
    return VllmCommand(
        argv=tuple(argv),
        environment={KEY_VARIABLE: keys[0]} if len(keys) == 1 else {},
        left_out=tuple(_left_out(config)),
    )


def serve_by_vllm(config: ServeConfig, console: Console) -> NoReturn:
    """Become vLLM. MissingExtra when its program is not on the PATH."""
    command = vllm_command(config)
    console.info(f"vLLM takes over: {command}")
    if command.left_out:
        console.warn(f"vLLM has no flag for {', '.join(command.left_out)}: it goes by its own")
    program = shutil.which("vllm")
    if program is None:
        raise MissingExtra(
            "the program vllm is not on the PATH",
            hint="install vLLM (docs.vllm.ai) and run this again, or run the command above where it is installed",
        )
    os.execve(program, command.argv, {**os.environ, **command.environment})


def _flag(name: str, value: object) -> Sequence[str]:
    return () if value is None else (name, str(value))


def _engine_flags(config: ServeConfig) -> list[str]:
    """Flags for keys of `engine` that were given: vLLM's own defaults suit a GPU better than ours for a CPU."""
    engine, given = config.engine, config.engine.model_fields_set
    argv: list[str] = []
    if "prefill_chunk_tokens" in given:
        argv += ["--max-num-batched-tokens", str(engine.prefill_chunk_tokens)]
    if "cache_block_tokens" in given:
        argv += ["--block-size", str(engine.cache_block_tokens)]
    if engine.cache_memory_mib is not None:
        argv += ["--kv-cache-memory-bytes", str(engine.cache_memory_mib << 20)]
    if not engine.reuse_prefixes:
        argv += ["--no-enable-prefix-caching"]
    if not engine.cuda_graphs:
        argv += ["--enforce-eager"]
    if engine.draft_model is not None:
        argv += ["--speculative-config", json.dumps({"model": engine.draft_model, "num_speculative_tokens": 4})]
    return argv


def _left_out(config: ServeConfig) -> list[str]:
    names = [name for name in UNSAID if name in _given(config)]
    return names + ["engine.max_rows"] * ("max_rows" in config.engine.model_fields_set)


def _given(config: ServeConfig) -> set[str]:
    """Keys whose value is not their default."""
    fields = ServeConfig.model_fields.items()
    return {name for name, field in fields if getattr(config, name) != field.get_default(call_default_factory=True)}
