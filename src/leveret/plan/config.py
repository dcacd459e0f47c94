"""PlanConfig: which recipe is planned, on which devices, and what is known about the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from leveret.config import Config, Flag, Positional


class PlanConfig(Config):
    """What each stage of a recipe will take: parameters, arithmetic, memory by part, and on each device how many are
    needed, how long, and what it costs. Nothing is loaded or run. What cannot be known is listed, not guessed."""

    recipe: Annotated[Path, Positional(0)]
    """A recipe (YAML), or with `command` the config of one command."""
    overrides: Annotated[tuple[str, ...], Positional(1)] = ()
    """Changes to it: seed=1, or STAGE.key=value such as pretrain.training.micro_batch_rows=4."""
    command: str | None = None
    """The command that the file is a config of, when it is no recipe: pretrain, finetune ..."""
    stages: list[str] = Field(default_factory=list)
    """Only these stages."""
    devices: list[str] = Field(default_factory=list)
    """Only these devices of the table: H100, H200, H800, A100, 4090, CPU, and those of `device_table`."""
    device_table: Path | None = None
    """Your own devices and prices (YAML, in the form of leveret/plan/devices.yaml)."""
    num_devices: Annotated[int | None, Field(ge=1)] = None
    """Plan for this many devices. None: as few as hold the stage when everything is split among them."""
    measure: bool = False
    """Time one product for half a second, and let CPU be this machine. With `fp8`, time Linears on the GPU at hand."""
    fp8: bool = False
    """Say for each shape of Linear in the training stages whether FP8 pays, on each device; with `measure`, also on the
    GPU at hand. Stages with training.fp8 are told in any case."""
    vocab_size: Annotated[int | None, Field(ge=1)] = None
    """Rows of the embedding, when no tokenizer says so yet."""
    tokens: Annotated[int | None, Field(ge=1)] = None
    """Tokens of training data, when the files that would say so are not there yet."""
    bytes_per_token: Annotated[float, Field(gt=0)] = 4.0
    """Bytes of a data file for each token, to estimate tokens from file sizes."""
    compare: bool = False
    """Put the forecast beside what the finished training stages measured."""
    as_json: Annotated[bool, Flag("json")] = False
    """Print one JSON object instead of tables."""
