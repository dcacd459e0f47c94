"""Imports point down: cli -> verbs -> machines -> tensors -> text -> ground. This table is the whole rule."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .source import SOURCE, imports, module_name, parsed, python_files, type_checking_lines

LAYERS: list[tuple[str, list[str]]] = [
    # Each line may import the lines above it. Folders on one line do not import one another.
    ("ground", ["errors", "version", "spelling", "yaml_files", "config", "paths", "console", "extras", "hub", "commands", "recipe", "ranks", "openai_http", "garbage", "container", "processor", "forked", "allocator"]),  # noqa: E501
    ("text", ["segment"]),
    ("text", ["tokenizer"]),
    ("text", ["chat"]),
    ("text", ["data"]),
    ("text", ["tools"]),
    ("text", ["tasks"]),
    ("tensors", ["kernels"]),
    ("tensors", ["precision"]),
    ("tensors", ["model"]),
    ("tensors", ["weights"]),
    ("machines", ["trainer", "engine"]),
    ("verbs", ["prepare", "vocabulary", "pretrain", "finetune", "merge", "quantize", "convert", "export", "certify", "evaluate", "serve", "pipeline", "plan", "launch"]),  # noqa: E501
    ("cli", ["cli", "__init__"]),
    ("cli", ["__main__"]),
]  # fmt: skip

RANK = {folder: rank for rank, (_, folders) in enumerate(LAYERS) for folder in folders}
LAYER = {folder: layer for layer, folders in LAYERS for folder in folders}
GROUND_PACKAGES = {"pydantic", "pydantic_core", "rich", "yaml", "huggingface_hub", "modelscope"}
"""What the ground may use besides the standard library."""


def folder_of(module: str) -> str:
    """`leveret.model.init` -> `model`; `leveret` -> `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def imported_folder(name: str) -> str:
    """The folder that an imported name lies in; `leveret.load` is a name of the package itself."""
    parts = name.split(".")
    if len(parts) > 1 and ((SOURCE / parts[1]).is_dir() or (SOURCE / f"{parts[1]}.py").is_file()):
        return parts[1]
    return "__init__"


def test_every_folder_is_in_the_table_and_every_entry_on_the_disk() -> None:
    on_disk = {folder_of(module_name(file)) for file in python_files()} | {"__main__"}
    planned = {"tasks"}
    assert on_disk <= set(RANK), f"put {on_disk - set(RANK)} into the table"
    assert set(RANK) - planned <= on_disk, f"{set(RANK) - planned - on_disk} is in the table and nowhere else"


@pytest.mark.parametrize("file", python_files(), ids=module_name)
def test_imports_point_down(file: Path) -> None:
    own = "__main__" if file.name == "__main__.py" else folder_of(module_name(file))
    wrong = []
    for name, line in imports(file):
        if name.split(".")[0] != "leveret":
            continue
        other = imported_folder(name)
        same_room = other == own or LAYER[own] == LAYER[other] == "ground"
        if not same_room and RANK[other] >= RANK[own]:
            wrong.append(f"line {line}: {own} ({LAYER[own]}) imports {name} ({LAYER[other]})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", python_files(), ids=module_name)
def test_torch_is_used_by_tensors_machines_verbs_and_cli_only(file: Path) -> None:
    layer = LAYER[folder_of(module_name(file))]
    allowed = layer not in ("ground", "text") and not file.name.endswith(("config.py", "__init__.py"))
    for_types = type_checking_lines(file)
    uses = [line for name, line in imports(file) if name.split(".")[0] == "torch" and line not in for_types]
    assert allowed or not uses, f"torch is imported on line {uses[0]}"


def test_the_ground_uses_few_packages() -> None:
    allowed = GROUND_PACKAGES | set(sys.stdlib_module_names) | {"leveret"}
    for file in python_files():
        if LAYER[folder_of(module_name(file))] == "ground":
            assert {name.split(".")[0] for name, _ in imports(file)} <= allowed, file


def test_modules_are_imported_absolutely() -> None:
    import ast

    for file in python_files():
        relative = [node for node in ast.walk(parsed(file)) if isinstance(node, ast.ImportFrom) and node.level]
        assert not relative, f"{file}: line {relative[0].lineno} has a relative import"
