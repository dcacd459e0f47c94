"""A plan for people, as tables, and for programs, as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from leveret.console import Console, duration
from leveret.model.count import count
from leveret.plan.compare import Comparison
from leveret.plan.devices import DeviceTable
from leveret.plan.forecast import Forecast
from leveret.plan.fp8 import Advice
from leveret.plan.memory import WAYS
from leveret.plan.work import Work


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Everything about one stage."""

    work: Work
    forecasts: tuple[Forecast, ...]
    comparisons: tuple[Comparison, ...] = ()
    fp8: tuple[Advice, ...] = ()
    """Whether FP8 pays, if that was asked."""


def show(plans: Sequence[StagePlan], table: DeviceTable, console: Console) -> None:
    """Print tables, and under them what was assumed and what is missing."""
    for plan in plans:
        if plan.work.kind != "other":
            _show_stage(plan, table, console)
    if others := [plan.work.stage.name for plan in plans if plan.work.kind == "other"]:
        console.print(f"Not forecast: {', '.join(others)} (their time is that of reading and writing files)")
    if any(plan.forecasts for plan in plans):
        assumed = ", ".join(f"{name} {device.utilization:g}" for name, device in table.devices.items())
        console.print(
            f"Assumed: utilization {assumed} (of models large enough to fill the device); several devices together "
            f"{table.parallel_utilization:g} of as many alone; {table.usable_memory:.0%} of a memory usable; the "
            "table's prices. Put in yours with --device-table; --measure measures this CPU."
        )


def _show_stage(plan: StagePlan, table: DeviceTable, console: Console) -> None:
    name = plan.work.stage.name
    console.table(f"{name}: {plan.work.stage.command.name}", ("what", "value"), _facts(plan.work))
    if plan.work.model is not None:
        kinds = [kind for kind in ("CPU", "GPU") if any((each == "CPU") == (kind == "CPU") for each in table.devices)]
        columns = {kind: plan.work.parts(compiled_kernels=kind == "CPU") for kind in kinds}
        names = [part.name for part in next(iter(columns.values()))]
        rows = [
            (name, *(in_bytes(parts[place].bytes) for parts in columns.values())) for place, name in enumerate(names)
        ]
        rows.append(("in all", *(in_bytes(sum(part.bytes for part in parts)) for parts in columns.values())))
        console.table(f"{name}: memory on one device", ("part", *(f"on a {kind}" for kind in kinds)), rows)
    if plan.forecasts:
        speed = "tokens/s at most" if plan.work.kind == "serving" else "tokens/s"
        heading = ("device", *WAYS, "planned", "each holds", speed, "time", "cost")
        device_rows = [_device_row(each) for each in plan.forecasts]
        console.table(
            f"{name}: how many devices it needs, copied or split; what the planned ones do", heading, device_rows
        )
    if plan.fp8:
        tokens = plan.fp8[0].tokens
        heading = ("device", "Linear", "inputs", "outputs", "bf16", "FP8", "bf16 / FP8", "pays")
        console.table(
            f"{name}: FP8, forward and backward of one Linear, {tokens:,} tokens", heading, map(_fp8_row, plan.fp8)
        )
    if plan.comparisons:
        heading = ("figure", "forecast", "measured", "measured / forecast")
        console.table(f"{name}: forecast and measured", heading, [_comparison_row(each) for each in plan.comparisons])


def as_data(plans: Sequence[StagePlan], table: DeviceTable) -> dict[str, Any]:
    """The same as JSON values."""
    return {"stages": [_stage_data(plan) for plan in plans], "table": table.model_dump(mode="json")}


def in_bytes(number: float) -> str:
    """A size in the unit that fits, powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number:,.0f} B"


def _facts(work: Work) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    if work.model is not None:
        numbers = count(work.model.config)
        rows += [("model", f"{work.model.config.family}, known from {work.model.origin}")]
        rows += [("parameters", f"{numbers.total:,}")]
        if numbers.active != numbers.total:
            rows += [("parameters a token uses", f"{numbers.active:,}")]
        if work.kind == "training":
            if not work.trained.is_everything:
                rows += [("of an adapter, trained", f"{work.trained.numbers:,}")]
            rows += [("FLOP a trained token", f"{work.flops_per_token():.4g}")]
        if work.kind == "quantizing":
            rows += [("bytes written", in_bytes(work.bytes_written()))]
    if work.data is not None:
        for name, value in (("steps", work.data.steps), ("tokens trained on", work.data.tokens)):
            rows += [(name, "not known" if value is None else f"{value:,}")]
        if work.data.tokens_in_files is not None:
            rows += [("tokens in the data", f"{work.data.tokens_in_files:,}")]
    return rows + [("note", note) for note in work.notes]


def _device_row(forecast: Forecast) -> tuple[object, ...]:
    return (
        forecast.device,
        *("none" if number is None else number for number in forecast.needed.values()),
        "does not fit" if forecast.devices is None else forecast.devices,
        None if forecast.bytes_per_device is None else in_bytes(forecast.bytes_per_device),
        None if forecast.tokens_per_second is None else f"{forecast.tokens_per_second:,.0f}",
        None if forecast.seconds is None else duration(forecast.seconds),
        None if forecast.dollars is None else f"${forecast.dollars:,.2f}",
    )


def _fp8_row(advice: Advice) -> tuple[object, ...]:
    shape, fp8 = advice.shape, advice.fp8_seconds
    return (
        advice.device, shape.name, shape.inputs, shape.outputs, f"{1e6 * advice.bf16_seconds:,.0f} us",
        None if fp8 is None else f"{1e6 * fp8:,.0f} us", None if fp8 is None else f"{advice.bf16_seconds / fp8:.2f}",
        advice.verdict,
    )  # fmt: skip


def _comparison_row(comparison: Comparison) -> tuple[object, ...]:
    values = (comparison.forecast, comparison.measured)
    ratio = None if comparison.ratio is None else f"{comparison.ratio:.2f}"
    return (comparison.figure, *(None if value is None else f"{value:,.4g}" for value in values), ratio)


def _stage_data(plan: StagePlan) -> dict[str, Any]:
    work = plan.work
    data: dict[str, Any] = {
        "stage": work.stage.name,
        "command": work.stage.command.name,
        "notes": list(work.notes),
        "memory": {part.name: part.bytes for part in work.parts(compiled_kernels=True)},
        "devices": [asdict(forecast) for forecast in plan.forecasts],
        "fp8": [asdict(each) for each in plan.fp8],
        "comparison": [{**asdict(each), "ratio": each.ratio} for each in plan.comparisons],
    }
    if work.model is not None:
        numbers = count(work.model.config)
        data["parameters"] = {"total": numbers.total, "active": numbers.active, "trained": None}
        if work.kind == "training":
            data["parameters"]["trained"] = work.trained.numbers
            data["flops_per_token"] = work.flops_per_token()
    if work.data is not None:
        data |= {"steps": work.data.steps, "tokens": work.data.tokens, "tokens_in_files": work.data.tokens_in_files}
    return data
