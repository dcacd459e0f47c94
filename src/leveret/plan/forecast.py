"""Time and money on a device: arithmetic over what it does in a second, and the update's bytes over its bandwidth.

    seconds of a step = tokens * FLOP a token / (devices * peak * utilization) + bytes of the update / bandwidth
    tokens a second   = tokens of a step / seconds of a step
    decoding          = bandwidth * read share / bytes of the active weights, for one stream

Utilization, read share, parallel utilization and price are assumptions of the table (devices.yaml). What a run does
besides steps (reading data, validation, checkpoints) is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from leveret.model.count import count
from leveret.plan.devices import Device, DeviceTable
from leveret.plan.fp8 import advise, time_ratio
from leveret.plan.memory import WAYS, bytes_per_device, devices_needed
from leveret.plan.work import Work


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A stage on a kind of device."""

    device: str
    needed: dict[str, int | None]
    """For each way to split: the fewest devices that hold it; None when no number does."""
    devices: int | None
    """How many the rest is about; None when it fits on no number of them."""
    bytes_per_device: float | None
    """On each of them, as split by the first way that fits."""
    tokens_per_second: float | None = None
    """Of all devices together: trained, or decoded in one stream."""
    seconds: float | None = None
    dollars: float | None = None


def forecast(work: Work, name: str, table: DeviceTable, num_devices: int | None = None) -> Forecast:
    """What `work` takes on the device called `name`."""
    device = table.devices[name]
    parts = work.parts(compiled_kernels=name == "CPU")
    room = table.usable_memory * 1e9 * device.memory_gb - 1e9 * device.process_gb
    needed = {way: devices_needed(parts, room, way) for way in WAYS}
    devices = num_devices or needed["zero-3"]
    if devices is None or work.model is None:
        return Forecast(device=name, needed=needed, devices=devices, bytes_per_device=None)
    fitting = [way for way in WAYS if bytes_per_device(parts, devices, way) <= room]
    held = bytes_per_device(parts, devices, fitting[0] if fitting else "zero-3") + 1e9 * device.process_gb
    rate, seconds = _pace(work, device, devices, table.parallel_utilization if devices > 1 else 1.0)
    return Forecast(
        device=name,
        needed=needed,
        devices=devices if fitting else None,
        bytes_per_device=held,
        tokens_per_second=rate if fitting else None,
        seconds=seconds if fitting else None,
        dollars=None if seconds is None or not fitting else seconds / 3600 * devices * device.dollars_per_hour,
    )


def _pace(work: Work, device: Device, devices: int, together: float) -> tuple[float | None, float | None]:
    """Tokens a second, and seconds in all."""
    if work.kind == "training":
        training = work.training
        tokens = training.rows_per_step * training.sequence_length
        speed = device.peak(training.precision) * device.utilization * devices * together
        update = work.optimizer_bytes_per_step() / (1e9 * device.bandwidth_gb_s * devices)
        rate = tokens / (tokens * work.flops_per_token() * _fp8_factor(work, device) / speed + update)
        total = None if work.data is None else work.data.tokens
        return rate, None if total is None else total / rate
    if work.kind == "serving":
        return device.decoding_bytes_per_second / work.bytes_read_per_decoded_token(), None
    return None, None


def _fp8_factor(work: Work, device: Device) -> float:
    """Time of the arithmetic with training.fp8 / in bf16: only the Linears inside the layers become faster."""
    if work.training.fp8 is None or work.model is None or device.fp8_tflops is None:
        return 1.0
    config = work.model.config
    inside = count(config).multiplied - config.hidden_size * config.vocab_size
    share = 6 * inside / work.flops_per_token()
    return 1 - share * (1 - time_ratio(advise(config, work.training, "", device)))
