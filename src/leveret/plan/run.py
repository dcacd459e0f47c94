"""`leveret plan`: what a recipe will take, stage by stage and device by device; after a run, how good that was."""

from __future__ import annotations

import json
from collections.abc import Sequence

from leveret.commands import COMMANDS, StageResult
from leveret.config import apply_overrides, parse_config, read_yaml, suggest
from leveret.console import Console
from leveret.errors import ConfigError
from leveret.plan.compare import compare
from leveret.plan.config import PlanConfig
from leveret.plan.devices import DeviceTable, load_table
from leveret.plan.forecast import forecast
from leveret.plan.fp8 import Advice, advise, shapes_of
from leveret.plan.fp8_probe import gpu_at_hand, measured_advice
from leveret.plan.probe import measured
from leveret.plan.report import StagePlan, as_data, show
from leveret.plan.work import Work, work_of
from leveret.recipe import Stage, load_recipe


def run(config: PlanConfig, console: Console) -> StageResult:
    """Print the plan; nothing else is done."""
    table = load_table(config.device_table).only(config.devices)
    if config.measure and ("CPU" in table.devices or not config.fp8):
        if "CPU" not in table.devices:
            raise ConfigError("`measure` measures CPU, which is not among the devices", hint="add --devices CPU")
        table = table.model_copy(update={"devices": {**table.devices, "CPU": measured(table.devices["CPU"])}})
    if config.fp8 and config.measure and gpu_at_hand() is None:
        console.warn("no GPU that multiplies in 8 bits is at hand: whether FP8 pays is forecast, not measured")
    stages = _stages(config)
    _refuse_unknown(config.stages, [stage.name for stage in stages])
    plans = [
        _plan(stage, stages[:place], config, table)
        for place, stage in enumerate(stages)
        if not config.stages or stage.name in config.stages
    ]
    if config.as_json:
        console.print(json.dumps(as_data(plans, table), ensure_ascii=False))
    else:
        show(plans, table, console)
    if config.compare and not any(plan.comparisons for plan in plans):
        console.warn("there is nothing to compare: no training stage of this recipe is finished")
    return StageResult(output=None, summary={"stages": len(plans)})


def _plan(stage: Stage, earlier: Sequence[Stage], config: PlanConfig, table: DeviceTable) -> StagePlan:
    work = work_of(
        stage,
        earlier,
        vocab_size=config.vocab_size,
        tokens=config.tokens,
        bytes_per_token=config.bytes_per_token,
    )
    if work.model is None or work.kind == "quantizing":
        return StagePlan(work=work, forecasts=())
    forecasts = tuple(forecast(work, name, table, config.num_devices) for name in table.devices)
    ran_on = next((each for each in forecasts if each.device == "CPU"), forecasts[0])
    return StagePlan(
        work=work,
        forecasts=forecasts,
        comparisons=tuple(compare(work, ran_on)) if config.compare else (),
        fp8=_fp8_advice(work, config, table),
    )


def _fp8_advice(work: Work, config: PlanConfig, table: DeviceTable) -> tuple[Advice, ...]:
    if work.kind != "training" or work.model is None or not (config.fp8 or work.training.fp8):
        return ()
    model, training = work.model.config, work.training
    found = [each for name, device in table.devices.items() for each in advise(model, training, name, device)]
    if config.measure and (gpu := gpu_at_hand()) is not None:
        tokens = training.micro_batch_rows * training.sequence_length
        found += measured_advice(shapes_of(model), tokens, gpu[0], f"{gpu[1]}, measured")
    return tuple(found)


def _stages(config: PlanConfig) -> tuple[Stage, ...]:
    """The stages of a recipe, or the one that a plain config describes."""
    if config.command is None:
        return load_recipe(config.recipe, config.overrides).stages
    _refuse_unknown([config.command], list(COMMANDS))
    command = COMMANDS[config.command]
    data = apply_overrides(read_yaml(config.recipe), config.overrides)
    parsed = parse_config(command.load_config(), data, source=str(config.recipe))
    return (Stage(name=command.name, command=command, config=parsed, references=()),)


def _refuse_unknown(wanted: Sequence[str], known: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            near = suggest(name, known)
            raise ConfigError(
                f"there is no '{name}', there are {', '.join(known)}", hint=f"did you mean {near}?" if near else None
            )
