"""A recipe: named stages in order, each a command and its config, checked as a whole before anything runs.

    name: demo                         default: the file's name
    output: runs/demo                  default: runs/<name>; each stage's output is a folder in it
    seed: 0                            the seed of every stage that does not set its own
    stages:
      - prepare: {rows: 1000}
      - tokenizer: {texts: "@prepare/text"}
      - name: second                   default: the command's name
        pretrain: {...}

"@stage" or "@stage/below" is a path in the output of an earlier stage, also after a prefix ("transformers:@stage");
"@@" begins a text that has an "@".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leveret.commands import COMMANDS, Command
from leveret.config import (
    Config,
    apply_overrides,
    mistakes,
    nested_config,
    parse_config,
    read_yaml,
    rehearsed,
    suggest,
)
from leveret.errors import ConfigError
from leveret.hub import is_quantized

_REFERENCE = re.compile(r"(?P<prefix>[a-z][a-z.]*:)?@(?P<stage>[\w-][\w.-]*)(?P<below>/.*)?")
_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class _Header(Config):
    """What a recipe says besides its stages."""

    name: str
    output: Path
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One checked stage."""

    name: str
    command: Command
    config: Config
    references: tuple[str, ...]
    """The earlier stages that its config names."""

    @property
    def output(self) -> Path | None:
        """The folder it writes, if its command writes one."""
        return getattr(self.config, "output", None)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe."""

    name: str
    output: Path
    seed: int
    stages: tuple[Stage, ...]

    def as_data(self) -> dict[str, Any]:
        """The resolved recipe, with every default written out."""
        stages = [
            {"name": stage.name, stage.command.name: stage.config.model_dump(mode="json")} for stage in self.stages
        ]
        return {"name": self.name, "output": str(self.output), "seed": self.seed, "stages": stages}


def load_recipe(path: Path, overrides: Sequence[str] = (), *, rehearsal: bool = False) -> Recipe:
    """Read and check a recipe; ConfigError lists every mistake in it, with its stage and key.

    In a rehearsal, the output is `<output>-rehearsal`, stages write nowhere else, and every config is shrunk.
    """
    data = _as_mapping(path, read_yaml(path))
    found: list[str] = []
    entries = _entries(data, found)
    header_data, per_stage = _split_overrides(overrides, entries, found)
    header = _header(path, data, header_data, found)
    if rehearsal:
        header = header.model_copy(update={"output": _beside(header.output)})
    draft = _Draft(header=header, rehearsal=rehearsal, found=found)
    stages = [draft.stage(entry, per_stage.get(entry.name, [])) for entry in entries]
    if found:
        noun = "a mistake" if len(found) == 1 else f"{len(found)} mistakes"
        raise ConfigError("\n  ".join([f"{path} has {noun}:", *found]))
    checked = tuple(stage for stage in stages if stage is not None)
    return Recipe(name=header.name, output=header.output, seed=header.seed, stages=checked)


def quantized_starts(config: Config, makers: Sequence[Config] = ()) -> Iterator[str]:
    """The mistakes that a model which must be whole is quantized: by an earlier stage, or as it lies there.

    makers: the configs of the stages before, whose outputs are not there yet, or may be old.
    """
    for key, reference, way_out in config.whole_models():
        if _holds_quantized(_absolute(reference), makers):
            yield f"{key}: {reference} is quantized; {way_out}"


def _holds_quantized(folder: Path, makers: Sequence[Config]) -> bool:
    """Whether the model in a folder is quantized, or will be when the last of `makers` that writes it has run."""
    for number, maker in reversed(list(enumerate(makers))):
        if _is_written(folder, maker):
            kept = maker.keeps_form_of()
            return maker.makes_quantized if kept is None else _holds_quantized(_absolute(kept), makers[:number])
    return is_quantized(folder)


def _absolute(reference: str) -> Path:
    return Path(reference).expanduser().absolute()


def _is_written(folder: Path, maker: Config) -> bool:
    output = getattr(maker, "output", None)
    return isinstance(output, Path) and folder.is_relative_to(output.absolute())


def _beside(output: Path) -> Path:
    """Where a rehearsal of what is written to `output` writes."""
    named = output if output.name not in ("", "..") else Path(os.path.abspath(output))
    return named.parent / f"{named.name}-rehearsal"


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A stage as the file has it: its name and command are known to be good."""

    name: str
    command: Command
    data: dict[str, Any]


@dataclass(kw_only=True)
class _Draft:
    """Turns entries into stages one after another, collecting mistakes in `found`."""

    header: _Header
    rehearsal: bool
    found: list[str]
    outputs: dict[str, Path | None] = field(default_factory=dict)
    """The output folders of the stages so far."""
    makers: list[Config] = field(default_factory=list)
    """The configs of the stages so far, of those that are right."""

    def stage(self, entry: _Entry, overrides: Sequence[str]) -> Stage | None:
        problems: list[str] = []
        try:
            data = apply_overrides(entry.data, overrides)
        except ConfigError as error:
            data = entry.data
            problems.append(str(error))
        model = entry.command.load_config()
        self._set_defaults(model, data, entry.name)
        used: dict[str, None] = {}
        data = {key: self._resolve(value, key, used, problems) for key, value in data.items()}
        output = data.get("output")
        problems += self._output_taken(output)
        self.outputs[entry.name] = Path(output) if isinstance(output, str | Path) else None
        problems += mistakes(model, data)
        self.found += [f"stage {entry.name}: {problem}" for problem in problems]
        if problems:
            return None
        config = parse_config(model, data, source=entry.name)
        self.found += [f"stage {entry.name}: {problem}" for problem in quantized_starts(config, self.makers)]
        self.makers.append(config)
        if self.rehearsal:
            config = rehearsed(config)
        return Stage(name=entry.name, command=entry.command, config=config, references=tuple(used))

    def _output_taken(self, output: Any) -> Iterator[str]:
        """The mistake that a folder is somebody else's: it would be moved away or written over with what is in it."""
        if not isinstance(output, str | Path):
            return
        place = Path(output).absolute()
        owner = next((name for name, other in self.outputs.items() if other and other.absolute() == place), None)
        if owner is not None:
            yield f"output: {output} is the output of stage {owner}; give each a folder of its own"
        elif self.header.output.absolute().is_relative_to(place):
            yield f"output: {output} is or holds the run's own folder {self.header.output}; name one below or beside it"

    def _set_defaults(self, model: type[Config], data: dict[str, Any], name: str) -> None:
        if "output" in model.model_fields and (self.rehearsal or data.get("output") is None):
            data["output"] = str(self.header.output / name)
        _set_seeds(model, data, self.header.seed)

    def _resolve(self, value: Any, key: str, used: dict[str, None], problems: list[str]) -> Any:
        """`value` with every reference in it replaced by a path."""
        if isinstance(value, dict):
            return {name: self._resolve(item, f"{key}.{name}", used, problems) for name, item in value.items()}
        if isinstance(value, list):
            return [self._resolve(item, f"{key}.{place}", used, problems) for place, item in enumerate(value)]
        if not isinstance(value, str) or "@" not in value:
            return value
        if value.startswith("@@"):
            return value[1:]
        found = _REFERENCE.fullmatch(value)
        stage = found["stage"] if found else ""
        output = self.outputs.get(stage)
        if found is None or output is None:
            if value.startswith("@"):
                problems.append(f"{key}: {self._no_such_stage(value, stage)}")
            return value
        used[stage] = None
        below = (found["below"] or "").lstrip("/")
        return f"{found['prefix'] or ''}{output / below if below else output}"

    def _no_such_stage(self, value: str, name: str) -> str:
        if name in self.outputs:
            return f"'{value}' names a stage that writes no folder"
        near = suggest(name, self.outputs)
        return f"'{value}' names no earlier stage" + (f"; did you mean @{near}?" if near else "")


def _as_mapping(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(data.get("stages"), list) or not data["stages"]:
        raise ConfigError(f"{path} is not a recipe: it has no list of `stages`", hint="docs/guide/run.md has one")
    return data


def _entries(data: Mapping[str, Any], found: list[str]) -> list[_Entry]:
    """The stages of the file, without those whose name or command is wrong."""
    entries: list[_Entry] = []
    for number, item in enumerate(data["stages"], start=1):
        place = f"stage {number}"
        if not isinstance(item, dict):
            found.append(f"{place}: write `command: {{key: value}}`, not {item!r}")
            continue
        verbs = [key for key in item if key != "name"]
        if len(verbs) != 1:
            found.append(f"{place}: names {len(verbs)} commands ({', '.join(map(str, verbs))}); a stage has one")
            continue
        command, body, name = COMMANDS.get(verbs[0]), item[verbs[0]] or {}, str(item.get("name") or verbs[0])
        if command is None or not command.stage:
            found.append(f"{place}: {_no_such_command(str(verbs[0]), command)}")
        elif not isinstance(body, dict):
            found.append(f"{place}: what follows `{verbs[0]}:` should be keys and values, not {body!r}")
        elif not _STAGE_NAME.fullmatch(name) or name in (*_Header.model_fields, "stages", "superseded"):
            found.append(f"{place}: '{name}' cannot be a stage's name (letters, digits, - and _)")
        elif name in (entry.name for entry in entries):
            found.append(f"{place}: the name '{name}' is taken; give it another with `name:`")
        else:
            entries.append(_Entry(name=name, command=command, data=body))
    return entries


def _no_such_command(verb: str, command: Command | None) -> str:
    if command is not None:
        return f"'{verb}' cannot be a stage"
    near = suggest(verb, (command.name for command in COMMANDS.values() if command.stage))
    return f"there is no command '{verb}'" + (f"; did you mean {near}?" if near else "")


def _split_overrides(
    overrides: Iterable[str], entries: Sequence[_Entry], found: list[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of the recipe's own keys, and those of each stage (without its name)."""
    own: list[str] = []
    per_stage: dict[str, list[str]] = {}
    names = [entry.name for entry in entries]
    for override in overrides:
        head, dot, rest = override.partition("=")[0].partition(".")
        if not dot and head in _Header.model_fields:
            own.append(override)
        elif dot and rest and head in names:
            per_stage.setdefault(head, []).append(override.removeprefix(f"{head}."))
        else:
            near = suggest(head, [*names, *_Header.model_fields])
            found.append(
                f"override {override}: expected STAGE.key=value or one of name, output, seed"
                + (f"; did you mean {near}?" if near and near != head else "")
            )
    return own, per_stage


def _header(path: Path, data: Mapping[str, Any], overrides: Sequence[str], found: list[str]) -> _Header:
    own = apply_overrides({key: value for key, value in data.items() if key != "stages"}, overrides)
    own.setdefault("name", path.stem)
    own.setdefault("output", f"runs/{own['name']}")
    problems = mistakes(_Header, own)
    found += problems
    return _Header(name=path.stem, output=Path("runs")) if problems else _Header.model_validate(own)


def _set_seeds(model: type[Config], data: dict[str, Any], seed: int) -> None:
    """Give `seed` to every key of this name that is not set, also in nested configs that are present by default."""
    for name, section in _sections(model, data):
        if name == "seed":
            section.setdefault("seed", seed)


def _sections(model: type[Config], data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, info in model.model_fields.items():
        inner = nested_config(info.annotation)
        if inner is None:
            yield name, data
        elif isinstance(data.get(name), dict):
            yield from _sections(inner, data[name])
        elif name not in data and isinstance(info.default, Config) and "seed" in inner.model_fields:
            data[name] = {}
            yield from _sections(inner, data[name])
