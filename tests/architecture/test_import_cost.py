"""`import leveret` and `leveret --help` are quick: neither loads torch, nor anything else that is slow."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from .source import module_name, python_files
from .test_layers import LAYER, folder_of

HEAVY = {"torch", "numpy", "transformers", "tokenizers", "pydantic", "rich", "yaml", "jinja2", "fastapi",
         "huggingface_hub"}  # fmt: skip
HELP_SECONDS = 0.4


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after running `code`."""
    report = "import sys, json; print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import leveret") & HEAVY


def test_the_help_page_loads_nothing_heavy() -> None:
    assert not loaded_by("from leveret.cli.main import main; main(['--help'])") & HEAVY


def test_the_help_page_of_a_command_loads_no_torch() -> None:
    assert "torch" not in loaded_by("from leveret.cli.main import main; assert main(['pretrain', '--help']) == 0")


def test_the_help_page_is_quick() -> None:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "leveret", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < HELP_SECONDS, f"the best of five took {min(seconds):.2f} s"


def test_ground_text_and_configs_load_no_torch() -> None:
    names = [
        module_name(file)
        for file in python_files()
        if LAYER[folder_of(module_name(file))] in ("ground", "text") or file.name.endswith("config.py")
    ]
    assert "torch" not in loaded_by("\n".join(f"import {name}" for name in names))
