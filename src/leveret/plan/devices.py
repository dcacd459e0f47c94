"""The device table: peaks from data sheets, and assumptions that anybody can replace by their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from leveret.config import Config, parse_config, read_yaml, suggest
from leveret.errors import ConfigError

BUILT_IN = Path(__file__).with_name("devices.yaml")
"""The table that comes along; its comments say what each key is."""


class Device(Config):
    """One kind of device."""

    memory_gb: Annotated[float, Field(gt=0)]
    """Memory, in 10^9 bytes."""
    bf16_tflops: Annotated[float, Field(gt=0)]
    """Peak of products in bf16, in 10^12 operations a second."""
    fp32_tflops: Annotated[float, Field(gt=0)]
    """The same in fp32."""
    fp8_tflops: Annotated[float | None, Field(gt=0)] = None
    """The same in FP8, summed in fp32. None: the device has it not."""
    bandwidth_gb_s: Annotated[float, Field(gt=0)]
    """Memory bandwidth, in 10^9 bytes a second."""
    utilization: Annotated[float, Field(gt=0, le=1)]
    """Arithmetic done in training / peak: an assumption."""
    read_share: Annotated[float, Field(gt=0, le=1)]
    """Bandwidth reached in decoding / bandwidth: an assumption."""
    dollars_per_hour: Annotated[float, Field(ge=0)]
    """Price of one for an hour: an assumption."""
    process_gb: Annotated[float, Field(ge=0)] = 0.0
    """What the program itself takes of the memory: Python and PyTorch."""

    def peak(self, precision: str) -> float:
        """Operations a second at the peak."""
        return 1e12 * (self.fp32_tflops if precision == "fp32" else self.bf16_tflops)

    @property
    def decoding_bytes_per_second(self) -> float:
        """Bytes a second that decoding reads."""
        return 1e9 * self.bandwidth_gb_s * self.read_share


class DeviceTable(Config):
    """Devices by name, and what holds for all of them."""

    devices: dict[str, Device] = Field(default_factory=dict)
    """Name -> device."""
    parallel_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Several devices together / as many alone: an assumption."""
    usable_memory: Annotated[float, Field(gt=0, le=1)] = 0.92
    """The share of a device's memory that may be filled."""

    def only(self, names: list[str]) -> DeviceTable:
        """The table with these devices, in this order; all of them if none is named."""
        for name in names:
            if name not in self.devices:
                near = suggest(name, self.devices)
                known = ", ".join(self.devices)
                raise ConfigError(
                    f"the table has no device '{name}', it has {known}",
                    hint=f"did you mean {near}?" if near else "add it to a table of yours and give --device-table",
                )
        chosen = {name: self.devices[name] for name in names or self.devices}
        return self.model_copy(update={"devices": chosen})


def load_table(own: Path | None) -> DeviceTable:
    """The built-in table, with the entries of `own` over it."""
    table = parse_config(DeviceTable, read_yaml(BUILT_IN), source=str(BUILT_IN))
    if own is None:
        return table
    mine = parse_config(DeviceTable, read_yaml(own), source=str(own))
    given = mine.model_dump(include=mine.model_fields_set - {"devices"})
    return table.model_copy(update={**given, "devices": {**table.devices, **mine.devices}})
