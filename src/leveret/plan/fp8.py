"""Whether FP8 pays, Linear by Linear: the time of its three products and of its casts, in both formats.

    bf16   max(6 M K N / (0.72 * peak),                                                     3 launches)
    fp8    max(6 M K N / (0.60 * peak) + bytes of the casts / (0.8 * bandwidth),           15 launches)

for M tokens of a micro-batch, K inputs and N outputs. A cast reads a bf16 number twice (for its amax, and to round it),
writes one byte, and reads and writes it again for the transposed copy: 7 bytes for each number of the input, the weight
and the gradient of the output. Linears that read one input share its cast. A launch is the 7 microseconds in which
Python asks the GPU for something: a Linear whose arithmetic takes less waits for Python, in FP8 five times as long.

The shares of the peaks are fitted to what others have published (`PUBLISHED`; a test compares). Read them as what can
be hoped for: the whole step also has attention, norms, the head and the update, which FP8 leaves as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leveret.model.config import ModelConfig
from leveret.plan.devices import Device
from leveret.trainer.config import TrainingConfig

BF16_SHARE, FP8_SHARE, BANDWIDTH_SHARE = 0.72, 0.60, 0.8
BYTES_CAST, BYTES_TRANSPOSED = 5, 2
LAUNCH_SECONDS = 7e-6
BF16_LAUNCHES, FP8_LAUNCHES = 3, 15

PUBLISHED = (
    ("torchao, H100", (1024, 2048, 1024), 0.80),
    ("torchao, H100", (4096, 8192, 16384), 1.39),
    ("nanochat's log, H100", (65536, 1664, 6656), 1.18),
)
"""Where from, (tokens, inputs, outputs), time in bf16 / time in FP8, forward and backward, compiled."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Linears of one shape in a model."""

    name: str
    inputs: int
    outputs: int
    how_many: int
    readers: int = 1
    """Linears that read the same input."""
    kept: str | None = None
    """Why they stay in bf16 in any case."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What FP8 does to the Linears of one shape, for one micro-batch on one device."""

    shape: Shape
    device: str
    tokens: int
    bf16_seconds: float
    """Of one of them, forward and backward."""
    fp8_seconds: float | None
    """None: the device or the shape cannot."""
    verdict: str


def advise(config: ModelConfig, training: TrainingConfig, name: str, device: Device) -> list[Advice]:
    """For each shape of Linear in the model, whether FP8 pays on `device`."""
    tokens = training.micro_batch_rows * training.sequence_length
    return [_advice(shape, name, device, tokens) for shape in shapes_of(config)]


def time_ratio(advice: Sequence[Advice]) -> float:
    """Time of all these Linears with FP8 / without, where FP8 is used wherever it can be."""
    bf16 = sum(each.bf16_seconds * each.shape.how_many for each in advice)
    fp8 = sum((each.fp8_seconds or each.bf16_seconds) * each.shape.how_many for each in advice)
    return fp8 / bf16


def shapes_of(config: ModelConfig) -> list[Shape]:
    """The Linears inside the layers; those of one shape and input together."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    queries = config.num_attention_heads * config.head_dim
    key_values = config.num_key_value_heads * config.head_dim
    attention = [
        Shape(name="q_proj", inputs=hidden, outputs=queries, how_many=layers, readers=3),
        Shape(name="k_proj, v_proj", inputs=hidden, outputs=key_values, how_many=2 * layers, readers=3),
        Shape(name="o_proj", inputs=queries, outputs=hidden, how_many=layers),
    ]
    kept = None if config.moe is None else "no: experts are multiplied as a group"
    copies = layers * (1 if config.moe is None else config.moe.experts_per_token)
    return [
        *attention,
        Shape(name="gate_proj, up_proj", inputs=hidden, outputs=inner, how_many=2 * copies, readers=2, kept=kept),
        Shape(name="down_proj", inputs=inner, outputs=hidden, how_many=copies, kept=kept),
    ]


def bf16_seconds(shape: Shape, tokens: int, device: Device, *, launch_seconds: float = LAUNCH_SECONDS) -> float:
    """Forward and backward of one Linear."""
    arithmetic = 6 * tokens * shape.inputs * shape.outputs / (BF16_SHARE * device.peak("bf16"))
    return max(arithmetic, BF16_LAUNCHES * launch_seconds)


def fp8_seconds(shape: Shape, tokens: int, device: Device, *, launch_seconds: float = LAUNCH_SECONDS) -> float | None:
    """The same in FP8; None on a device that has it not."""
    if device.fp8_tflops is None:
        return None
    arithmetic = 6 * tokens * shape.inputs * shape.outputs / (FP8_SHARE * 1e12 * device.fp8_tflops)
    both = BYTES_CAST + BYTES_TRANSPOSED
    cast = tokens * shape.inputs * (BYTES_CAST / shape.readers + BYTES_TRANSPOSED)
    cast += both * shape.outputs * (tokens + shape.inputs)
    casts = cast / (BANDWIDTH_SHARE * 1e9 * device.bandwidth_gb_s)
    return max(arithmetic + casts, FP8_LAUNCHES * launch_seconds)


def verdict_on(bf16: float, fp8: float) -> str:
    """In a word or two."""
    gain = bf16 / fp8
    return "yes" if gain >= 1.1 else "hardly" if gain >= 1 else "no: casts cost more"


def _advice(shape: Shape, name: str, device: Device, tokens: int) -> Advice:
    bf16, fp8 = bf16_seconds(shape, tokens, device), fp8_seconds(shape, tokens, device)
    if fp8 is None:
        verdict = "no: the device has no FP8"
    elif shape.inputs % 16 or shape.outputs % 16:
        fp8, verdict = None, "no: a size is no multiple of 16"
    elif shape.kept is not None:
        fp8, verdict = None, shape.kept
    elif fp8 <= FP8_LAUNCHES * LAUNCH_SECONDS:
        verdict = "no: waits for Python" if fp8 > bf16 else "hardly"
    else:
        verdict = verdict_on(bf16, fp8)
    return Advice(shape=shape, device=name, tokens=tokens, bf16_seconds=bf16, fp8_seconds=fp8, verdict=verdict)
