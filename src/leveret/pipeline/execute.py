"""Runs the stages of a checked recipe in order, skipping what is done, and prints what each took.

For each stage its fingerprint (`dependencies.py`) is compared with the one in the book (`ledger.py`):

    same, done, output whole     skipped
    same, done, files are gone   ran: the verb makes again what is missing
    same, begun                  resumed: the verb goes on in its own folder
    another                      the old output is set aside under superseded/, and the stage begins anew
    none                         ran
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from leveret.commands import StageResult
from leveret.config import suggest
from leveret.console import Console
from leveret.errors import ConfigError
from leveret.paths import atomic_write
from leveret.pipeline.dependencies import ContentHashes, Parts, combine, explain_change, files_written, parts_of
from leveret.pipeline.group import Invitations, follow
from leveret.pipeline.inputs import missing_inputs
from leveret.pipeline.isolation import run_isolated
from leveret.pipeline.ledger import Ledger, Record
from leveret.pipeline.lock import locked
from leveret.ranks import Ranks
from leveret.recipe import Recipe, Stage
from leveret.yaml_files import dump_yaml

Action = Literal["skipped", "resumed", "ran"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a recipe is run; see RunConfig for the fields."""

    again_from: str | None = None
    until: str | None = None
    keep_after_code_changes: bool = False
    isolate: bool = True


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A line of the closing table."""

    stage: str
    command: str
    action: Action
    seconds: float


def execute(recipe: Recipe, options: Options, console: Console) -> StageResult:
    """Run a recipe in its output folder; only one process at a time may work there."""
    _check_stage_names(recipe, options)
    if missing := list(missing_inputs(recipe, options.until)):
        raise ConfigError("\n  ".join([f"{recipe.name} reads what is not there:", *missing]))
    ranks = Ranks.from_environment()
    if ranks is not None and not options.isolate:
        raise ConfigError("several processes need isolate: true; each training stage is a meeting of new processes")
    if ranks is not None and not ranks.is_main:
        return follow(recipe, ranks, console)
    Ledger(recipe.output).open()
    with locked(recipe.output / ".lock"):
        console = console.to_file(recipe.output / "log.txt")
        atomic_write(recipe.output / "recipe.yaml", dump_yaml(recipe.as_data()))
        began = time.monotonic()
        lines = _Execution(recipe, options, console, None if ranks is None else Invitations(ranks)).run()
        total = time.monotonic() - began
    _show(recipe, lines, total, console)
    ran = [line.stage for line in lines if line.action != "skipped"]
    return StageResult(
        output=recipe.output,
        summary={"stages": len(lines), "ran": len(ran), "seconds": round(total, 2)},
    )


class _Execution:
    """One pass over the stages."""

    def __init__(self, recipe: Recipe, options: Options, console: Console, others: Invitations | None) -> None:
        self._recipe, self._options, self._console, self._others = recipe, options, console, others
        self._ledger = Ledger(recipe.output)
        self._contents = ContentHashes(recipe.output / "inputs.json")
        self._fingerprints: dict[str, tuple[Stage, str]] = {}

    def run(self) -> list[_Done]:
        lines = []
        again = False
        for stage in self._recipe.stages:
            again = again or stage.name == self._options.again_from
            lines.append(self._stage(stage, again=again))
            if stage.name == self._options.until:
                break
        if self._others is not None:
            self._others.end()
        return lines

    def _stage(self, stage: Stage, *, again: bool) -> _Done:
        parts = parts_of(stage, self._fingerprints, self._contents)
        record = self._ledger.read(stage.name)
        if record is not None and self._options.keep_after_code_changes:
            parts["code"] = record.parts.get("code", parts["code"])
        fingerprint = combine(parts)
        self._fingerprints[stage.name] = (stage, fingerprint)
        action = self._decide(stage, record, fingerprint, parts, again=again)
        if action == "skipped":
            assert record is not None
            return _Done(stage=stage.name, command=stage.command.name, action=action, seconds=record.seconds)
        self._console.rule(stage.name if stage.name == stage.command.name else f"{stage.name} ({stage.command.name})")
        self._write(stage, "begun", fingerprint, parts)
        began = time.monotonic()
        result = self._call(stage)
        seconds = round(time.monotonic() - began, 2)
        self._write(stage, "done", fingerprint, parts, seconds=seconds, result=result)
        return _Done(stage=stage.name, command=stage.command.name, action=action, seconds=seconds)

    def _decide(self, stage: Stage, record: Record | None, fingerprint: str, parts: Parts, *, again: bool) -> Action:
        if record is None:
            return "ran"
        if record.fingerprint == fingerprint and not again:
            if record.status == "begun":
                self._console.info(f"{stage.name} was interrupted; it goes on")
                return "resumed"
            if (gone := _gone(stage, record)) is None:
                return "skipped"
            self._console.warn(f"{stage.name} was done, but {gone} is gone; it runs again")
            return "ran"
        why = "it was asked for" if again else f"changed: {explain_change(record.parts, parts)}"
        aside = None if stage.output is None else self._ledger.set_aside(stage.name, stage.output)
        kept = "" if aside is None else f"; its old output is in {aside}"
        self._console.warn(f"{stage.name} runs again ({why}){kept}")
        return "ran"

    def _call(self, stage: Stage) -> StageResult:
        if self._options.isolate:
            lock = self._recipe.output / ".stage-lock"
            others = self._others if stage.command.parallel else None
            gathering = None if others is None else others.invite(stage)
            return run_isolated(stage.command, stage.config, self._console, lock=lock, gathering=gathering)
        return stage.command.execute(stage.config, self._console)

    def _write(
        self,
        stage: Stage,
        status: Literal["begun", "done"],
        fingerprint: str,
        parts: Parts,
        *,
        seconds: float = 0.0,
        result: StageResult | None = None,
    ) -> None:
        self._ledger.write(
            Record(
                stage=stage.name,
                command=stage.command.name,
                status=status,
                fingerprint=fingerprint,
                parts=parts,
                output=None if stage.output is None else str(stage.output),
                seconds=seconds,
                summary={} if result is None else result.summary,
                files=files_written(stage.output) if status == "done" else (),
            )
        )


def _gone(stage: Stage, record: Record) -> str | None:
    """What a stage that is done has lost since: its output, or a file in it; None when all is there."""
    if stage.output is None:
        return None
    if not stage.output.exists():
        return f"its output {stage.output}"
    lost = record.lost(stage.output)
    more = f" (with {len(lost) - 1:,} other files)" if len(lost) > 1 else ""
    return f"{stage.output / lost[0]}{more}" if lost else None


def _check_stage_names(recipe: Recipe, options: Options) -> None:
    names = [stage.name for stage in recipe.stages]
    for key, name in (("again_from", options.again_from), ("until", options.until)):
        if name is not None and name not in names:
            near = suggest(name, names)
            raise ConfigError(
                f"{key}: {recipe.name} has no stage '{name}'", hint=f"did you mean {near}?" if near else None
            )
    again, until = options.again_from, options.until
    if again is not None and until is not None and names.index(again) > names.index(until):
        raise ConfigError(f"again_from: '{again}' comes after '{until}', where until ends the run: it would do nothing")


def _show(recipe: Recipe, lines: list[_Done], total: float, console: Console) -> None:
    rows: list[tuple[str, str, str, float | None]] = [
        (line.stage, line.command, "done before" if line.action == "skipped" else line.action, line.seconds)
        for line in lines
    ]
    worked = sum(line.seconds for line in lines if line.action != "skipped")
    rows += [("(between stages)", "", "", round(max(0.0, total - worked), 2)), ("total", "", "", round(total, 2))]
    console.table(f"{recipe.name}: {recipe.output}", ("stage", "command", "what", "seconds"), rows)
