"""Run by test_triton_product.py in a process of its own: compiles the Triton program for GPUs that are not there."""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from leveret.kernels.triton_few_rows import few_rows
from leveret.kernels.triton_product import BLOCK_N, BLOCK_W

# (bits, span, rows of a block, dtype, dtype of sums)
KINDS = [
    (4, 8 * BLOCK_W, 16, "bf16", "fp32"),
    (4, 8, 32, "bf16", "bf16"),
    (4, 1, 64, "fp16", "fp16"),
    (8, 4 * BLOCK_W, 16, "bf16", "bf16"),
    (8, 4, 64, "fp16", "fp32"),
    (8, 1, 16, "bf16", "fp32"),
]
POINTERS = {"words": "*i32", "zeros": "*i32", "scales": "*fp16", "group_of_input": "*i32"}
NUMBERS = dict.fromkeys(("M", "N", "W", "words_each"), "i32")
ALIGNED = ("x", *POINTERS, "out", "N", "words_each")
"""What is a multiple of 16, as an address or a number, where Triton looks."""
LEAST_MEMORY = 99 * 1024
"""Shared memory of an instance on the GPUs of capability 8.0 and above that have least (8.6, 8.9), in bytes."""

if __name__ == "__main__":
    capability = int(sys.argv[1])
    place = {name: (index,) for index, name in enumerate(few_rows.arg_names)}
    for bits, span, rows, dtype, sums in KINDS:
        fixed = dict(BITS=bits, OFFSET=1, SPAN=span, BLOCK_M=rows, BLOCK_N=BLOCK_N, BLOCK_W=BLOCK_W)
        types = {"x": f"*{dtype}", **POINTERS, "out": f"*{sums}", **NUMBERS, **dict.fromkeys(fixed, "constexpr")}
        source = ASTSource(
            few_rows,
            {name: types[name] for name in few_rows.arg_names},
            constexprs={place[name]: value for name, value in fixed.items()},
            attrs={place[name]: [["tt.divisibility", 16]] for name in ALIGNED},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        product = "wgmma.mma_async" if "wgmma.mma_async" in compiled.asm["ptx"] else "mma.sync"
        assert product in compiled.asm["ptx"], "no tensor core multiplies"
        shared = compiled.metadata.shared
        assert len(compiled.asm["cubin"]) > 1000 and shared <= LEAST_MEMORY, f"{bits} bits, runs of {span}: {shared}"
        print(f"sm_{capability}, {bits} bits, runs of {span}, {rows} rows of {dtype}: {product}, {shared} bytes")
