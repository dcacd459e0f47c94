"""Words and options of a command line become one config: `leveret pretrain recipe.yaml seed=1 --name tiny`.

    recipe.yaml            the base, for commands that write an `output`; must come first
    key=value              sets a key, also a nested one: training.max_steps=10
    --key value            the same; a switch is --key or --no-key, a list repeats the option
    word                   fills the next positional argument

Later wins over earlier, options over words. A word with "=" whose key is unknown fills a positional argument if
one is left (a prompt may be `x=1`), and is refused with a suggestion if none is, or if it is one of paths or models,
no such path exists and a key is near.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from leveret.cli.fields import Key, keys_of, positionals, section_help
from leveret.commands import Command
from leveret.config import Config, parse_config, read_yaml, suggest
from leveret.errors import ConfigError
from leveret.yaml_files import parse_yaml, set_key


class ConfigCommand(click.Command):
    """A click command whose options, arguments and help page are made from a config model."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.model = command.load_config()
        self.keys = keys_of(self.model)
        self.positionals = positionals(self.keys)
        options: list[click.Parameter] = [
            _option(number, key) for number, key in enumerate(self.keys) if not (key.order is not None and key.is_list)
        ]
        words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)
        dry_run = click.Option(["--dry-run"], is_flag=True, help="Print the resolved config as YAML and do nothing.")
        super().__init__(
            command.name,
            params=[words, *options, dry_run],
            help=_full_help(command, self.model),
            context_settings={"max_content_width": 110},
        )

    def config_from(self, words: Sequence[str], options: Mapping[str, Any]) -> Config:
        """The config that `words` and click's `options` describe. Raises ConfigError listing every mistake."""
        rest, data, source = list(words), {}, f"leveret {self.name}"
        if rest and self.takes_base and Path(rest[0]).suffix in (".yaml", ".yml"):
            source = rest.pop(0)
            data = read_yaml(source)
        self._apply_words(rest, data)
        for number, key in enumerate(self.keys):
            given = options.get(_parameter(number))
            if given is not None and given != ():
                set_key(data, key.name, _read_option(key, given))
        try:
            return parse_config(self.model, data, source=source)
        except ConfigError as error:
            raise ConfigError(error.message, hint=f"leveret {self.name} --help explains every key") from None

    @property
    def takes_base(self) -> bool:
        """Whether a YAML file as first word is the base config."""
        return "output" in self.model.model_fields

    def _apply_words(self, words: Sequence[str], data: dict[str, Any]) -> None:
        left = list(self.positionals)
        by_name = {key.name: key for key in self.keys}
        spelled = {key.flag.removeprefix("--").replace("-", "_"): key.name for key in self.keys}
        for word in words:
            name, equals, text = word.partition("=")
            name = name.replace("-", "_")
            name = spelled.get(name, name)
            if equals and name.partition(".")[0] in self.model.model_fields:
                known = by_name.get(name)
                set_key(data, name, known.read(text) if known else parse_yaml(text, source=f"the value of {name}"))
            elif not left:
                raise ConfigError(*self._surplus(word, name if equals else None))
            elif equals and left[0].holds_places and self._near(name) and not Path(word).exists():
                raise ConfigError(*self._surplus(word, name))  # a key with a typing error
            elif left[0].is_list:
                data.setdefault(left[0].name, [])
                data[left[0].name] = [*data[left[0].name], left[0].read_item(word)]
            else:
                key = left.pop(0)
                set_key(data, key.name, key.read(word))

    def _surplus(self, word: str, name: str | None) -> tuple[str]:
        if name is not None:
            near = self._near(name)
            return (f"leveret {self.name} has no key '{name}'" + (f"; did you mean {near}?" if near else ""),)
        taken = ", ".join(key.name for key in self.positionals) or "no argument"
        return (f"leveret {self.name} cannot place '{word}': it takes {taken}, and key=value",)

    def _near(self, name: str) -> str | None:
        return suggest(name, [key.name for key in self.keys])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Positional arguments by their names, then what every command takes."""
        pieces = ["[BASE.yaml]"] if self.takes_base else []
        for key in self.positionals:
            name = key.name.upper() + ("..." if key.is_list else "")
            pieces.append(name if key.info.is_required() else f"[{name}]")
        return [*pieces, "[KEY=VALUE]...", "[OPTIONS]"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Arguments, then options by section, then what every command has."""
        _definitions(formatter, "Arguments", [(key.name.upper(), key.help) for key in self.positionals])
        for section in dict.fromkeys(key.section for key in self.keys):
            title = f"{section}: {section_help(self.model, section)}".rstrip(":. ") if section else "Options"
            keys = [key for key in self.keys if key.section == section and key.order is None]
            _definitions(formatter, title, [(_written(key), key.help) for key in keys])
        general = [("--dry-run", "Print the resolved config as YAML and do nothing."), ("--help", "Show this page.")]
        _definitions(formatter, "Every command", general)


def _full_help(command: Command, model: type[Config]) -> str:
    more = inspect.cleandoc(model.__doc__ or "")
    return command.help if more == command.help else f"{command.help}\n\n{more}"


def _parameter(number: int) -> str:
    return f"key_{number}"


def _option(number: int, key: Key) -> click.Option:
    plain = "--" + key.name
    names = [_parameter(number), *dict.fromkeys((key.flag, plain))]
    if key.is_switch:
        off = dict.fromkeys((_negated(key.flag), _negated(plain)))
        pairs = [f"{yes}/{no}" for yes, no in zip(names[1:], off, strict=True)]
        return click.Option([names[0], *pairs], default=None, is_flag=True, type=click.BOOL)
    return click.Option(names, multiple=key.is_list, type=click.UNPROCESSED, metavar=key.kind)


def _negated(flag: str) -> str:
    """`--outer.inner` -> `--outer.no-inner`."""
    head, dot, last = flag.removeprefix("--").rpartition(".")
    return f"--{head}{dot}no-{last}"


def _written(key: Key) -> str:
    return f"{key.flag} / {_negated(key.flag)}" if key.is_switch else f"{key.flag} {key.kind}"


def _read_option(key: Key, given: Any) -> Any:
    if key.is_switch:
        return given
    if not key.is_list:
        return key.read(given)
    if len(given) == 1 and given[0].lstrip().startswith("["):
        return parse_yaml(given[0], source=f"the value of {key.name}")
    return [key.read_item(text) for text in given]


def _definitions(formatter: click.HelpFormatter, title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=34)
