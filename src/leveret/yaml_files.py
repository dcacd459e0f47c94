"""YAML as people expect it: `1e-3` is a number, `on` a word, `07:30` a text, and no key is given twice.

PyYAML reads YAML 1.1, in which `1e-3` is a string, `on` and `no` are booleans, `07:30` is the number 450 and
`2026-01-31` a date object. Here the core schema of YAML 1.2 holds (https://yaml.org/spec/1.2.2/#103-core-schema):
null, true/false, integers, floats; everything else is text. Anchors and merge keys (`<<`) work.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from leveret.errors import ConfigError
from leveret.spelling import suggest


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; {} for an empty file. Raises ConfigError naming the line of a mistake."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = suggest(path.name, [file.name for file in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else None
        hint = None if near is None else f"did you mean {path.parent / near}?"
        raise ConfigError(f"there is no file {path}", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    data = parse_yaml(text, source=str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; expected `key: value` lines")
    return data


def parse_yaml(text: str, *, source: str) -> Any:
    """The value written in `text`; `source` names it in the ConfigError of a mistake."""
    try:
        value = yaml.load(text, Loader=_CoreLoader)
        _refuse_loops(value, source)
        return value
    except RecursionError:
        raise ConfigError(f"{source}: there are too many lists and mappings inside each other") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f":{mark.line + 1}"
        raise ConfigError(f"{source}{place}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {error}") from None


def _refuse_loops(value: Any, source: str) -> None:
    """ConfigError when an anchor stands for something that holds it: no reader of the value would come to an end."""
    around: set[int] = set()
    fine: set[int] = set()  # looked at already: an anchor may be used often

    def look(inner: Any, key: str) -> None:
        if not isinstance(inner, dict | list) or id(inner) in fine:
            return
        if id(inner) in around:
            raise ConfigError(f"{source}: {key}: an anchor (&) is used (*) inside of what it stands for")
        around.add(id(inner))
        for part, item in inner.items() if isinstance(inner, dict) else enumerate(inner):
            look(item, f"{key}.{part}" if key else str(part))
        around.remove(id(inner))
        fine.add(id(inner))

    look(value, "")


def dump_yaml(data: Any) -> str:
    """`data` (plain values) as YAML that reads back the same, keys in their order; a text on one line, to be copied."""
    text: str = yaml.dump(data, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with each `a.b=value` set, the value read as YAML (`a.b=` and `a.b=null` give None).

    Mappings on the way are made; a number on the way counts into a list. Raises ConfigError.
    """
    changed = copy.deepcopy(data)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"'{override}' is not an override", hint="write key=value or nested.key=value")
        set_key(changed, key, parse_yaml(text, source=f"the value of {key}"))
    return changed


def set_key(data: dict[str, Any], dotted_key: str, value: Any) -> None:
    """Set `data["a"]["b"] = value` for the key `a.b`, in place."""
    *way, last = dotted_key.split(".")
    place: Any = data
    for part in way:
        place = _enter(place, part, dotted_key)
    if isinstance(place, list):
        place[_position(place, last, dotted_key)] = value
    else:
        place[last] = value


def _enter(place: Any, part: str, dotted_key: str) -> Any:
    """One step down; only mappings and lists can be entered."""
    if isinstance(place, list):
        inner = place[_position(place, part, dotted_key)]
    else:
        if place.get(part) is None:
            place[part] = {}
        inner = place[part]
    if not isinstance(inner, dict | list):
        raise ConfigError(f"{dotted_key}: '{part}' holds the value {inner!r}, so nothing can be set inside it")
    return inner


def _position(place: list[Any], part: str, dotted_key: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise ConfigError(f"{dotted_key}: '{part}' should be a position from 0 to {len(place) - 1} in a list")
    return int(part)


_OTHER_LINE_ENDS = re.compile("[\r\x85\u2028\u2029]")


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the resolvers of YAML 1.2 and no duplicate keys."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  PyYAML's own way to say which plain words are not text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                problem = f"the key '{name}' was already given on line {seen[name]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if name is not None and name != "<<":
                seen[name] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


class _CoreDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting what the loader above would take for something else than text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Line ends other than a line feed are escaped: a key in single quotes that is one reads back as a space."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _OTHER_LINE_ENDS.search(text) else None)


def _plain_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).replace(".inf", "inf").replace(".nan", "nan").casefold())


def _plain_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


for _tag, _pattern, _first in (
    ("null", r"|~|null|Null|NULL", ["", "~", "n", "N"]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    for _reader_or_writer in (_CoreLoader, _CoreDumper):
        _reader_or_writer.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_CoreDumper.add_representer(str, _text)
_CoreLoader.add_constructor("tag:yaml.org,2002:float", _plain_float)
_CoreLoader.add_constructor("tag:yaml.org,2002:int", _plain_int)
