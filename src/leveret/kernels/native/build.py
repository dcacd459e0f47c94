"""How the C++ kernels are compiled: which instruction sets, with which flags, into which files.

The sources know neither Python nor PyTorch: plain functions over pointers, called through `ctypes`. So they compile in
seconds with any C++ compiler, need nothing at build time (pip builds in an empty environment), and one build serves
every version of Python and PyTorch. The same sources are compiled once for each instruction set; which one runs is
decided when the library is loaded (`library.py`), so a wheel built on one machine works on another.

setup.py runs `build_all` at installation. Without a compiler nothing is built, and the PyTorch twins serve.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = (
    "rows.cpp",
    "attention.cpp",
    "updates.cpp",
    "orthogonal.cpp",
    "integers.cpp",
    "decode.cpp",
    "experts.cpp",
    "nf4.cpp",
    "merging.cpp",
    "dense.cpp",
)

COMMON_FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math"),  # vector code may compute what a branch would have skipped
    "-Wno-psabi",  # vectors are passed between functions of one library only
)
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512")
_AVX2 = ("-mavx2", "-mfma")
X86_FLAGS = {
    "avx512_amx": (*_AVX512, "-mavx512bf16", "-mavx512vnni", "-DLEVERET_TILES"),
    "avx512_bf16": (*_AVX512, "-mavx512bf16", "-mavx512vnni"),
    "avx512_vnni": (*_AVX512, "-mavx512vnni"),
    "avx512": _AVX512,
    "avx2_vnni": (*_AVX2, "-mavxvnni"),
    "avx2": _AVX2,
}
"""Instruction set -> what tells the compiler to use it. The best one comes first."""


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """What is built on this kind of machine; "plain" is what every processor of the kind can run."""
    return {**(X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else {}), "plain": ()}


def source_hash() -> str:
    """Twelve hex digits that change with any source: a library built from other sources is not used."""
    digest = hashlib.sha256()
    headers = sorted(each.name for each in FOLDER.glob("*.h"))
    for name in (*SOURCES, *headers):
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:12]


def library_path(instruction_set: str, folder: Path = FOLDER) -> Path:
    """The file that holds the kernels for one instruction set."""
    return folder / f"leveret_{instruction_set}.so"


def find_compiler() -> str | None:
    """The C++ compiler: what CXX says, else the usual names. None when there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def build_all(folder: Path = FOLDER) -> list[str]:
    """Compile every library into `folder`; returns a line for each that could not be, empty when all are there."""
    compiler = find_compiler()
    if compiler is None:
        return ["no C++ compiler was found (CXX, g++, clang++, c++)"]
    sets = instruction_sets()
    with ThreadPoolExecutor(os.cpu_count()) as several:
        problems = several.map(lambda name: build_one(compiler, sets[name], library_path(name, folder)), sets)
        return [f"{name}: {problem}" for name, problem in zip(sets, problems, strict=True) if problem is not None]


def build_one(compiler: str, flags: Sequence[str], target: Path) -> str | None:
    """Compile one library into `target`, whole or not at all; returns what went wrong, None when nothing did."""
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    version = f"-DLEVERET_SOURCE_HASH={source_hash()}"
    sources = [str(FOLDER / each) for each in SOURCES]
    command = [compiler, *COMMON_FLAGS, *flags, version, *sources, "-o", str(draft)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        os.replace(draft, target)
        return None
    draft.unlink(missing_ok=True)
    return f"{compiler} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
