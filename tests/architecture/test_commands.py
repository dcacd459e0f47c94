"""Every command's targets exist, every verb folder is a command, every key has help and is read by something."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from leveret.cli.arguments import ConfigCommand
from leveret.cli.fields import keys_of
from leveret.cli.main import main
from leveret.commands import COMMANDS, Command
from leveret.config import Config, Positional, nested_config, rehearsed

from .source import ROOT, SOURCE, module_name, parsed, python_files

NO_VERBS = {"run", "rehearse", "validate", "chat", "generate", "inspect", "show", "doctor"}
"""Commands that have no folder of their name; `tokenizer` is the verb of the folder `vocabulary`."""

TOPICS = {"README", "adapters", "backends", "fp8", "python", "data_formats"}
"""Pages of the guide about something else than a command or a folder."""

commands = pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))


def configs(model: type[Config]) -> Iterator[type[Config]]:
    """A config and those nested in it."""
    yield model
    for info in model.model_fields.values():
        inner = nested_config(info.annotation)
        if inner is not None:
            yield from configs(inner)


@commands
def test_the_config_and_the_function_exist(command: Command) -> None:
    assert issubclass(command.load_config(), Config)
    assert list(inspect.signature(command.load_run()).parameters) == ["config", "console"]
    resolve = command.load_resolve()
    assert resolve is None or list(inspect.signature(resolve).parameters) == ["config"]


def test_verb_folders_are_commands() -> None:
    folders = {file.parent.name for file in SOURCE.glob("*/run.py")} - {"pipeline"}
    verbs = {command.run.split(".")[1] for name, command in COMMANDS.items() if name not in NO_VERBS}
    assert folders == verbs


@commands
def test_every_key_has_help(command: Command) -> None:
    for model in configs(command.load_config()):
        assert inspect.cleandoc(model.__doc__ or ""), f"{model.__name__} has no docstring"
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{name} has no docstring"


@commands
def test_defaults_of_nested_configs_stand_in_their_classes(command: Command) -> None:
    for model in configs(command.load_config()):
        for name, info in model.model_fields.items():
            if isinstance(info.default, Config):
                assert info.default == type(info.default)(), (
                    f"{model.__name__}.{name}: make a subclass for its defaults"
                )
                assert type(info.default) is nested_config(info.annotation), f"{model.__name__}.{name}"


@commands
def test_positional_arguments_are_numbered_without_gaps(command: Command) -> None:
    fields = command.load_config().model_fields.values()
    orders = [mark.order for info in fields for mark in info.metadata if isinstance(mark, Positional)]
    assert sorted(orders) == list(range(len(orders)))


def read_names() -> set[str]:
    """Every name that some code reads as an attribute, or says in a text that may be used for getattr."""
    names = set()
    for file in python_files():
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                names.add(node.value)
    return names


def test_no_key_that_nothing_reads() -> None:
    models = {model for command in COMMANDS.values() for model in configs(command.load_config())}
    read = read_names()
    unread = {f"{model.__name__}.{name}" for model in models for name in model.model_fields if name not in read}
    assert not unread


@commands
def test_the_help_page_names_every_key(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command.name, "--help"]) == 0
    page = capsys.readouterr().out
    for key in ConfigCommand(command).keys:
        assert key.flag in page or key.name.upper() in page


@commands
def test_a_command_has_a_page_in_the_guide_that_calls_it(command: Command) -> None:
    page = ROOT / "docs/guide" / f"{command.name}.md"
    assert page.is_file(), f"write docs/guide/{command.name}.md"
    assert f"leveret {command.name}" in page.read_text(encoding="utf-8")


def test_the_guide_has_only_pages_of_commands_folders_and_topics() -> None:
    folders = {folder.name for folder in SOURCE.iterdir() if folder.is_dir()}
    assert {page.stem for page in (ROOT / "docs/guide").glob("*.md")} <= set(COMMANDS) | folders | TOPICS


@commands
def test_a_config_is_json_and_its_rehearsal_is_valid(command: Command) -> None:
    """With what is required filled in by paths; commands that need more are rehearsed by their own tests."""
    model = command.load_config()
    kinds = {key.name: key.kind for key in keys_of(model)}
    required = {
        name: ["x"] if kinds[name].endswith("...") else "x"
        for name, info in model.model_fields.items()
        if info.is_required() and name in kinds
    }
    try:
        config = model.model_validate(required)
    except ValueError:
        pytest.skip(f"{command.name} needs more than words")
    json.dumps(config.model_dump(mode="json"))
    assert isinstance(rehearsed(config), model)


def test_config_modules_are_named_config() -> None:
    for command in COMMANDS.values():
        module = command.config.partition(":")[0]
        assert module.endswith("config"), module
        assert module in {module_name(Path(file)) for file in python_files()}
