"""Run by test_triton_product.py in a process of its own, since Triton asks for TRITON_INTERPRET when it is imported.

What the program gets from Triton's interpreter is compared with the plain twin, and with a dequantization that loops
over the inputs of the file. The interpreter (3.9) multiplies the bits of bfloat16 as integers and cuts float32 off
where a GPU rounds, so both are put right first. Prints the cases that were wrong; the last line is how many were right.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import torch
import triton.language as tl
from torch import Tensor, nn
from triton.runtime import interpreter

from leveret.kernels.int_matmul import GroupedIntegers, matmul_plain
from leveret.kernels.triton_product import TOLERANCE, Kind, kind_of, multiply_triton, prepare_words, watch
from leveret.precision.awq_layout import AwqStorage
from leveret.precision.gptq_layout import GptqStorage, pack
from leveret.precision.int4 import Int4Linear
from leveret.precision.int8 import Int8Linear

# (inputs, outputs, group size): runs of a word, an input, a block; one group; ends that fill no block; shared outputs.
SHAPES = [(128, 64, 32), (24, 24, 3), (256, 72, 128), (136, 136, 136), (1032, 40, 8), (1024, 16, 128)]
MIXED = [(24, 24, 3), (128, 64, 32)]
ROWS = [(1, torch.bfloat16), (3, torch.float16), (16, torch.float16), (33, torch.bfloat16)]


def make_interpreter_exact() -> None:
    """Let it multiply bfloat16 as numbers and round to it as hardware does."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast = builder.create_dot, builder.cast_impl

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return handle((operand.data.astype("uint32") << 16).view("float32"), tl.float32)

    def exact_cast(self: Any, source: Any, wanted: Any) -> Any:
        if (source.dtype.scalar, wanted.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, wanted)
        rounded = torch.from_numpy(source.data.copy()).bfloat16().view(torch.int16).numpy().view("uint16")
        return handle(rounded, tl.bfloat16)

    builder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)
    builder.cast_impl = exact_cast
    for name in ("create_fp_trunc", "create_fp_to_fp"):
        original = getattr(builder, name)
        setattr(builder, name, lambda self, source, wanted, *rest, original=original: (
            exact_cast(self, source, wanted) if wanted.scalar == tl.bfloat16 else original(self, source, wanted, *rest)
        ))  # fmt: skip


def some_weight(bits: int, inputs: int, outputs: int, group_size: int, *, mixed: bool = False) -> GroupedIntegers:
    groups = torch.arange(inputs, dtype=torch.int32) // group_size
    return GroupedIntegers(
        levels_OI=torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8),
        scales_GO=(torch.rand(inputs // group_size, outputs) * 0.1 - 0.03).half(),
        zeros_GO=torch.randint(1, 2**bits, (inputs // group_size, outputs), dtype=torch.int32),
        group_of_input=groups[torch.randperm(inputs)] if mixed else groups,
        bits=bits,
    )


def written_out(stored: dict[str, Tensor], bits: int, offset: int) -> Tensor:
    """The weight (O, I) in float64 from the words of the GPTQ layout, by nothing of ours."""
    fields, top = 32 // bits, 2**bits
    outputs = stored["qweight"].shape[1]
    words, zeros = stored["qweight"].long() % 2**32, stored["qzeros"].long() % 2**32
    rows, o = [], torch.arange(outputs)
    for column, group in enumerate(stored["g_idx"].tolist()):
        level = words[column // fields] // top ** (column % fields) % top
        zero = zeros[group][o // fields] // top ** (o % fields) % top
        rows.append((level - (zero + offset) % top).double() * stored["scales"][group].double())
    return torch.stack(rows, dim=1)


def off_by(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def products() -> tuple[int, set[Kind]]:
    right, kinds = 0, set[Kind]()
    shapes = [(*shape, False) for shape in SHAPES] + [(*shape, True) for shape in MIXED]
    for bits, (inputs, outputs, size, mixed) in itertools.product((4, 8), shapes):
        offset = (bits // 4 + inputs // 8 + mixed) % 2
        weight = some_weight(bits, inputs, outputs, size, mixed=mixed)
        stored = pack(weight, "gptq" if offset else "gptq_v2")
        prepared = prepare_words(
            stored["qweight"], stored["qzeros"], stored["scales"], stored["g_idx"], bits=bits, zero_offset=offset
        )
        independent = written_out(stored, bits, offset)
        for rows, dtype in ROWS:
            x = torch.randn(rows, inputs).to(dtype)
            found = multiply_triton(x, prepared)
            assert found.dtype == dtype and found.shape == (rows, outputs)
            # The same weights as the twin's: only the order of sums differs, so one step of the last place at most.
            errors = off_by(found, matmul_plain(x, weight)), off_by(found, x.double() @ independent.T)
            if errors[0] <= TOLERANCE[dtype] / 2 and errors[1] <= TOLERANCE[dtype]:
                right += 1
                kinds.add(kind_of(x, prepared))
            else:
                print("wrong:", bits, inputs, outputs, size, mixed, rows, dtype, errors)
    return right, kinds


def layers() -> int:
    """Linears that believe to be on a GPU; the watch compares, and lets all of them be multiplied so."""
    right = 0
    linear = nn.Linear(128, 48).requires_grad_(False)
    small = Int4Linear.from_linear(linear, group_size=32, symmetric=False)
    across = Int4Linear(128, 48, storage=AwqStorage(group_size=32), bias=True)
    across.fill(small.integers())
    reordered = Int8Linear(128, 48, storage=GptqStorage(bits=8, group_size=16, symmetric=False, desc_act=True))
    reordered.fill(some_weight(8, 128, 48, 16, mixed=True))
    for kind in (Int4Linear, Int8Linear):
        kind.on_gpu = property(lambda layer: True)
    for layer in (small, across, reordered, Int8Linear.from_linear(linear, group_size=None)):
        layer.product = "packed"
        layer.packed_refusal = lambda: None
        x = torch.randn(2, 5, 128).bfloat16()
        wanted = matmul_plain(x, layer.integers()) + (0 if layer.bias is None else layer.bias.bfloat16())
        right += off_by(layer(x), wanted) <= TOLERANCE[x.dtype]
    assert watch().failure is None and len(watch().trusted) == 3, watch()
    return right


if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "1"
    torch.manual_seed(0)
    make_interpreter_exact()
    right, kinds = products()
    assert {kind.span for kind in kinds} == {1, 4, 8, 64, 128} and {kind.shared for kind in kinds} == {True, False}
    assert {kind.block_rows for kind in kinds} == {16, 64} and {kind.whole_lines for kind in kinds} == {True, False}
    print(right, layers())
