"""Finds the compiled kernels that suit this processor, loads them once, and can say what was chosen and why.

    LEVERET_NATIVE=off          use the PyTorch twins only, on a GPU too (../triton_product.py)
    LEVERET_NATIVE=avx2         use this build, for comparisons; build.py has their names

A build whose sources have changed since is not loaded: kernels and the Python that calls them belong together. A build
must get a small product right before it is used. With AMX, whose instructions the system must first allow and some
virtual machines announce but do not run, it is asked in a process of its own, which may die of it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from leveret.errors import ConfigError
from leveret.kernels.native.build import instruction_sets, library_path, source_hash
from leveret.processor import processor

VARIABLE = "LEVERET_NATIVE"


@dataclass(frozen=True)
class Choice:
    """Which kernels run."""

    library: ctypes.CDLL | None
    """None: the PyTorch twins."""
    reason: str
    """For people: which build, or why none."""
    instruction_set: str | None = None
    """What the library was compiled for."""


@functools.cache
def choose() -> Choice:
    """Load the best build that this processor can run."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off":
        return Choice(None, f"PyTorch kernels ({VARIABLE}=off)")
    if wanted and wanted not in instruction_sets():
        raise ConfigError(f"{VARIABLE}={wanted!r}: there are off, {', '.join(instruction_sets())}")
    names = [name for name in runnable() if not wanted or name == wanted]
    built = [name for name in names if library_path(name).is_file()]
    if not built:
        return Choice(None, "PyTorch kernels (no compiled ones; install leveret again where a C++ compiler is)")
    skipped = ""
    for name in built:
        choice = load(name)
        if choice.library is not None or len(built) == 1:
            return replace(choice, reason=choice.reason + skipped)
        skipped += f"; {name} was not: {choice.reason}"
    return Choice(None, f"PyTorch kernels{skipped}")


def compiled() -> ctypes.CDLL | None:
    """The compiled kernels; None where the PyTorch twins serve."""
    return choose().library


def chosen_for(builds: Sequence[str]) -> ctypes.CDLL | None:
    """The compiled kernels, if they are of one of these builds."""
    choice = choose()
    return choice.library if choice.instruction_set in builds else None


def missing() -> str | None:
    """Why there are no compiled kernels; None when there are."""
    return choose().reason if choose().library is None else None


def runnable() -> list[str]:
    """The builds whose instructions this processor, as PyTorch and the system see it, has; the best one first."""
    name = torch.backends.cpu.get_cpu_capability()
    wide = name.startswith(("AVX512", "AMX"))
    able = {"plain": True, "avx2": wide or name.startswith("AVX2"), "avx512": wide}
    able["avx2_vnni"] = able["avx2"] and "avx_vnni" in processor().flags
    able["avx512_vnni"] = wide and _has("_is_vnni_supported")
    able["avx512_bf16"] = able["avx512_vnni"] and _has("_is_avx512_bf16_supported")
    able["avx512_amx"] = able["avx512_bf16"] and _has("_is_amx_tile_supported")
    return [each for each in instruction_sets() if able[each]]


def _has(feature: str) -> bool:
    """What PyTorch says about the processor; False where this version of it cannot say."""
    ask = getattr(torch.cpu, feature, None)
    return ask is not None and bool(ask())


def load(instruction_set: str) -> Choice:
    """Load one build; a choice without a library, and the reason, if it does not fit."""
    path = library_path(instruction_set)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return Choice(None, f"PyTorch kernels ({path.name} cannot be loaded: {error})")
    library.leveret_source_hash.restype = ctypes.c_char_p
    if library.leveret_source_hash().decode() != source_hash():
        return Choice(None, f"PyTorch kernels ({path.name} was compiled from other sources; install leveret again)")
    if instruction_set == "avx512_amx" and (problem := _check_apart(path)) is not None:
        return Choice(None, f"PyTorch kernels ({path.name} failed its check: {problem})")
    if (wrong := library.leveret_check_products() or library.leveret_check_eights()) != 0:
        return Choice(None, f"PyTorch kernels ({path.name} failed its check with {wrong})")
    return Choice(library, f"compiled kernels for {instruction_set}", instruction_set)


def _check_apart(path: Path) -> str | None:
    """Let a process of its own load the library and check its products; what went wrong, or None."""
    program = (
        "import ctypes, sys; kernels = ctypes.CDLL(sys.argv[1]);"
        "sys.exit(kernels.leveret_check_products() or kernels.leveret_check_eights())"
    )
    found = [str(Path(torch.__file__).parent / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]  # for its libgomp
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, found))}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program, str(path)],
            env=environment, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else f"it ended with {done.returncode}"


def native_for(*tensors: Tensor) -> ctypes.CDLL | None:
    """The compiled kernels, if they can work on these: plain bfloat16 tensors on the CPU, in one piece."""
    for tensor in tensors:
        if tensor.dtype != torch.bfloat16 or tensor.device.type != "cpu" or not tensor.is_contiguous():
            return None
        if type(tensor) not in (Tensor, Parameter):  # a compiler's or a device mesh's stand-in has no memory of its own
            return None
    return choose().library


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers begin; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def size(number: int) -> ctypes.c_int64:
    """A count or length, as the kernels take it."""
    return ctypes.c_int64(number)
