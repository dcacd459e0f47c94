"""The config as vLLM's command: every key that has a flag is on it, and the others are named."""

from __future__ import annotations

import itertools
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from leveret.errors import ConfigError
from leveret.serve.config import ServeConfig
from leveret.serve.vllm import vllm_command


def config(**keys: object) -> ServeConfig:
    return ServeConfig.model_validate({"model": "models/hare", "backend": "vllm"} | keys)


def test_a_plain_config_says_where_to_listen_and_how_many_at_a_time() -> None:
    command = vllm_command(config())
    assert " ".join(command.argv) == (
        "vllm serve models/hare --host 127.0.0.1 --port 8000 --max-num-seqs 32 --response-role assistant"
    )
    assert command.left_out == ()


def test_every_key_with_a_flag_is_on_the_command(tmp_path: Path) -> None:
    argv = vllm_command(
        config(
            served_model_name="hare",
            dtype="bfloat16",
            max_model_len=2048,
            tensor_parallel_size=2,
            chat_template="hare.jinja",
            adapter=["phone=adapters/phone", "mail=adapters/mail"],
            allow_origins=["https://chat.example"],
            engine={"cache_memory_mib": 64, "reuse_prefixes": False, "prefill_chunk_tokens": 256, "cuda_graphs": False},
        )
    ).argv
    pairs = dict(itertools.pairwise(argv))
    assert pairs["--served-model-name"] == "hare"
    assert pairs["--tensor-parallel-size"] == "2"
    assert pairs["--max-model-len"] == "2048"
    assert pairs["--kv-cache-memory-bytes"] == str(64 << 20)
    assert pairs["--max-num-batched-tokens"] == "256"
    assert json.loads(pairs["--allowed-origins"]) == ["https://chat.example"]
    first = argv.index("--lora-modules")
    assert argv[first + 1 : first + 3] == ("phone=adapters/phone", "mail=adapters/mail")
    assert {"--enable-lora", "--no-enable-prefix-caching", "--enforce-eager"} <= set(argv)


def test_a_key_goes_through_the_environment_and_several_through_flags() -> None:
    one, two = vllm_command(config(api_key="secret")), vllm_command(config(api_key="a,b"))
    assert one.environment == {"VLLM_API_KEY": "secret"}
    assert "secret" not in str(one)
    assert two.argv[-3:] == ("--api-key", "a", "b")


def test_what_vllm_cannot_be_told_is_named_or_refused() -> None:
    assert set(vllm_command(config(drain_seconds=5, max_body_bytes=10)).left_out) == {"drain_seconds", "max_body_bytes"}
    with pytest.raises(ConfigError, match="ask"):
        vllm_command(config(ask=["Hello"]))


def test_tensor_parallelism_and_adapters_are_refused_where_nobody_does_them() -> None:
    with pytest.raises(ValueError, match="tensor_parallel_size is for backend=vllm"):
        ServeConfig(model="m", tensor_parallel_size=2)
    with pytest.raises(ValueError, match="serves one model"):
        ServeConfig(model="m", backend="transformers", adapter=["a=b"])


def run(path: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "leveret", "serve", "models/hare", "backend=vllm", "tensor_parallel_size=4"]
    environment = os.environ | {"PATH": path, "LEVERET_API_KEY": "k"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_process_becomes_vllm(tmp_path: Path) -> None:
    fake = tmp_path / "vllm"
    fake.write_text(
        f'#!{sys.executable}\nimport os, sys\nprint(sys.argv[1:], os.environ["VLLM_API_KEY"])\nsys.exit(7)\n'
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    done = run(str(tmp_path))
    assert done.returncode == 7
    assert "'--tensor-parallel-size', '4'" in done.stdout
    assert done.stdout.rstrip().endswith("k")


def test_without_vllm_the_command_is_shown_and_the_way_out(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    assert done.returncode != 0
    assert "vllm serve models/hare" in done.stderr
    assert "not on the PATH" in done.stderr
