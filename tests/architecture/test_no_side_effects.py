"""Importing every module changes nothing: no environment, logger, warning filter, random state or default dtype."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .source import module_name, python_files

CHECK = """
import importlib, locale, logging, os, random, signal, sys, threading, warnings
# Other packages may do as they like; they are loaded before the look around.
import click, fastapi, jinja2, numpy, pydantic, rich.console, rich.progress, safetensors.torch, tokenizers, torch
import gradio, huggingface_hub, uvicorn, yaml, jinja2.sandbox, numpy.random, multiprocessing.connection
import torch.distributed.fsdp, torch.distributed.tensor

def look():
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "root logger": (logging.root.level, list(logging.root.handlers), logging.root.disabled),
        "warning filters": list(warnings.filters),
        "random": random.getstate(),
        "numpy random": str(numpy.random.get_state()),
        "torch random": torch.random.get_rng_state().tolist(),
        "torch dtype": torch.get_default_dtype(),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch determinism": torch.are_deterministic_algorithms_enabled(),
        "torch gradients": torch.is_grad_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "threads": threading.active_count(),
        "import path": list(sys.path),
        "hooks": (sys.excepthook, sys.displayhook),
        "locale": locale.setlocale(locale.LC_ALL),
    }

before = look()
for name in sys.argv[1:]:
    importlib.import_module(name)
    after = look()
    for what in before:
        assert before[what] == after[what], f"importing {name} changes: {what}"
"""


@pytest.mark.slow
def test_importing_every_module_changes_nothing() -> None:
    names = [module_name(file) for file in python_files() if file.name != "__main__.py"]
    names.remove("leveret.kernels.triton_few_rows")  # says that it imports Triton, which is not everywhere
    done = subprocess.run([sys.executable, "-c", CHECK, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "importing prints something"
