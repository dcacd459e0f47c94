"""A config's keys as the command line sees them: name, kind of value, default, help, and how text is read."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from leveret.config import Config, Flag, Positional, nested_config
from leveret.yaml_files import dump_yaml, parse_yaml


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a config; the keys of a config nested in it are `outer.inner`."""

    name: str
    info: FieldInfo
    section: str
    """The dotted key of the config it stands in; "" at the top."""

    @property
    def flag(self) -> str:
        """`--outer.inner-words`, or what a `Flag` says."""
        spelled = next((mark.name for mark in self.info.metadata if isinstance(mark, Flag)), None)
        return "--" + (spelled or self.name).replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false, given as `--key` or `--no-key`."""
        return self.info.annotation is bool

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return _item_type(self.info.annotation) is not None

    @property
    def holds_places(self) -> bool:
        """Whether it names places: paths, configs which a path alone can stand for, or texts that are said to."""
        item = _item_type(self.info.annotation) or self.info.annotation
        said = any(isinstance(mark, Positional) and mark.places for mark in self.info.metadata)
        return said or item is Path or nested_config(item) is not None

    @property
    def order(self) -> int | None:
        """Its place among the positional arguments, if it is one."""
        return next((mark.order for mark in self.info.metadata if isinstance(mark, Positional)), None)

    @property
    def kind(self) -> str:
        """What to write: `INT`, `cosine|linear`, `PATH` ..."""
        return _kind(self.info.annotation)

    @property
    def help(self) -> str:
        """Docstring, range and default in one text."""
        text = " ".join((self.info.description or "").split())
        notes = [*_bounds(self.info.metadata)]
        if self.info.is_required():
            notes.append("required")
        elif (default := self.default_text()) is not None:
            notes.append(f"default: {default}")
        return f"{text} [{'; '.join(notes)}]" if notes else text

    def default_text(self) -> str | None:
        """The default as it would be written, or None when it is off, empty or worked out."""
        default = self.info.default
        if default is PydanticUndefined or default is None or default == () or default == []:
            return None
        return _flow(default)

    def read(self, text: str) -> Any:
        """The value that `text` means: as it stands where words are expected, else as YAML; one item is a list too."""
        if _wants_words(self.info.annotation) and not (text == "null" and _is_optional(self.info.annotation)):
            return text
        value = parse_yaml(text, source=f"the value of {self.name}")
        return [self.read_item(text)] if self.is_list and not isinstance(value, list | None) else value

    def read_item(self, text: str) -> Any:
        """One value of a list."""
        item = _item_type(self.info.annotation)
        return text if _wants_words(item) else parse_yaml(text, source=f"the value of {self.name}")


def keys_of(model: type[Config], section: str = "") -> list[Key]:
    """All keys, in the order they are written, those of nested configs after the config's own."""
    own: list[Key] = []
    nested: list[Key] = []
    for name, info in model.model_fields.items():
        dotted = f"{section}.{name}" if section else name
        inner = nested_config(info.annotation)
        if inner is None:
            own.append(Key(name=dotted, info=info, section=section))
        else:
            nested.extend(keys_of(inner, dotted))
    return own + nested


def positionals(keys: Sequence[Key]) -> list[Key]:
    """The positional arguments, in order."""
    return sorted((key for key in keys if key.order is not None), key=lambda key: key.order or 0)


def section_help(model: type[Config], section: str) -> str:
    """The docstring of the nested config that `section` names."""
    inner: type[Config] | None = model
    text = ""
    for part in section.split("."):
        assert inner is not None
        info = inner.model_fields[part]
        text, inner = info.description or "", nested_config(info.annotation)
    return " ".join(text.split())


def _branches(annotation: Any) -> list[Any]:
    """The choices of a union without None; the annotation itself when it is none."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [branch for choice in typing.get_args(annotation) for branch in _branches(choice)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _branches(typing.get_args(annotation)[0])
    return [] if annotation is type(None) else [annotation]


def _is_optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _item_type(annotation: Any) -> Any:
    """The type of a list's items, or None for what is not a list."""
    branches = _branches(annotation)
    if len(branches) != 1 or typing.get_origin(branches[0]) not in (list, tuple, Sequence, frozenset, set):
        return None
    return next((item for item in typing.get_args(branches[0]) if item is not Ellipsis), str)


def _wants_words(annotation: Any) -> bool:
    """Whether every choice is text: then `12`, `true` and `a: b` are text as well."""
    branches = _branches(annotation)
    return bool(branches) and all(
        branch in (str, Path)
        or (typing.get_origin(branch) is Literal and all(isinstance(word, str) for word in typing.get_args(branch)))
        for branch in branches
    )


def _kind(annotation: Any) -> str:
    item = _item_type(annotation)
    if item is not None:
        return f"{_kind(item)}..."
    words: list[str] = []
    for branch in _branches(annotation):
        if typing.get_origin(branch) is Literal:
            words.extend(str(choice) for choice in typing.get_args(branch))
        else:
            words.append({str: "TEXT", Path: "PATH", int: "INT", float: "NUMBER", bool: "BOOL"}.get(branch, "YAML"))
    return "|".join(dict.fromkeys(words))


def _bounds(metadata: Sequence[Any]) -> list[str]:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return [f"{sign} {getattr(mark, name)}" for mark in metadata for name, sign in signs.items() if hasattr(mark, name)]


def _flow(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Config):
        value = value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return ", ".join(_flow(item) for item in value)
    return dump_yaml(value).removesuffix("\n").removesuffix("\n...")
