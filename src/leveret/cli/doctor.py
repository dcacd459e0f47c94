"""`leveret doctor`: versions, processor, memory, disk, extras, and a tiny model run two ways that must agree."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from leveret.cli.doctor_config import DoctorConfig
from leveret.cli.tensor_table import in_bytes
from leveret.commands import StageResult
from leveret.console import Console
from leveret.container import allowed_cores, memory_limit
from leveret.errors import LeveretError
from leveret.paths import cache_dir, free_bytes
from leveret.processor import processor
from leveret.version import VERSION

CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
    "avx512_vnni": "AVX-512 int8",
    "avx_vnni": "AVX2 int8",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
    "asimd": "NEON",
    "bf16": "NEON bf16",
}
"""Names in /proc/cpuinfo -> names people use; more is faster, nothing here is needed."""

DEVICES = Path("/dev")
"""Where Linux lists the cards of a machine, whether torch can use them or not."""

LOW_DISK_BYTES = 2_000_000_000
TOLERANCE = 1e-5


def run(config: DoctorConfig, console: Console) -> StageResult:
    """Print the findings; LeveretError when the self-check fails."""
    rows = [*_installation(), *_machine(config.folder), *_extras()]
    console.table("this machine", ("what", "value"), rows)
    if free_bytes(config.folder) < LOW_DISK_BYTES:
        console.warn(f"less than {in_bytes(LOW_DISK_BYTES)} free in {config.folder.absolute()}; checkpoints need room")
    began = time.monotonic()
    try:
        difference = self_check()
    except (ImportError, OSError) as error:
        raise LeveretError(
            f"the self-check cannot run: {error}",
            hint="install again what the table lacks, in this environment; torch: pip install --force-reinstall torch",
        ) from None
    if not difference <= TOLERANCE:
        raise LeveretError(
            f"self-check failed: a tiny model gives logits {difference:.2e} apart with and without its cache",
            hint="reinstall torch, then run leveret doctor again; if it stays, please report it with the table above",
        )
    console.print(
        f"self-check passed: a tiny model with and without its cache agrees within {difference:.1e} "
        f"({time.monotonic() - began:.1f} s)"
    )
    return StageResult(output=None, summary={"largest_difference": difference})


def self_check() -> float:
    """The largest difference between the logits of 16 tokens read at once and one by one through the cache."""
    import torch

    from leveret.model.cache import KVCache
    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights

    config = ModelConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    model = Decoder(config).eval()
    init_weights(model, seed=0)
    ids = torch.arange(16).mul(31).remainder(97).unsqueeze(0)  # (1, 16)
    with torch.inference_mode():
        whole = model(ids)
        cache = KVCache(config, batch_size=1, capacity=16, dtype=torch.float32, device=torch.device("cpu"))
        steps = torch.cat([model(ids[:, step : step + 1], cache=cache) for step in range(16)], dim=1)
    return float((whole - steps).abs().max())


def _installation() -> Iterator[tuple[str, str]]:
    yield "leveret", f"{VERSION} in {Path(__file__).parents[1]}"
    yield "Python", f"{platform.python_version()} ({platform.platform()})"
    yield "torch", _if_it_imports(_torch)
    for package in ("tokenizers", "safetensors", "numpy", "pydantic", "jinja2", "huggingface_hub"):
        yield package, metadata.version(package) if _is_installed(package) else f"missing: pip install {package}"
    yield "accelerator", _if_it_imports(_accelerator)
    yield "cache", str(cache_dir())


def _if_it_imports(say: Callable[[], str]) -> str:
    """What `say` says, or why a package that it needs is not to be had: a broken installation is told, not met."""
    try:
        return say()
    except (ImportError, OSError) as error:
        return f"cannot be told: {error}"


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if (number := len([*DEVICES.glob("nvidia[0-9]*")])) == 0:
        return "none; everything runs on CPU"
    version = torch.version.cuda
    built = (
        "for CPUs only" if version is None else f"for CUDA {version}: is the driver old, or CUDA_VISIBLE_DEVICES set?"
    )
    return f"none that torch can use, of {number} NVIDIA here; this torch is built {built}"


def _machine(folder: Path) -> Iterator[tuple[str, str]]:
    flags, name = processor().flags, processor().name
    yield "processor", f"{name}, {allowed_cores()} cores to use"
    yield "processor features", ", ".join(label for flag, label in CPU_FEATURES.items() if flag in flags) or "unknown"
    yield "kernels", _if_it_imports(_kernels)
    total, available = _memory()
    yield "memory", f"{in_bytes(total)}, {in_bytes(available)} free" if total else "unknown"
    yield "disk", f"{in_bytes(free_bytes(folder))} free in {folder.absolute()}"


def _kernels() -> str:
    from leveret.kernels.native.library import choose

    return choose().reason


def _extras() -> Iterator[tuple[str, str]]:
    """The extras of the package's metadata, each with what is missing and the command that brings it."""
    needed: dict[str, list[str]] = {}
    if not _is_installed("leveret"):
        yield "extras", "cannot be told: leveret runs from its source and is not installed"
        return
    for requirement in metadata.requires("leveret") or []:
        found = re.fullmatch(r"([\w.-]+)[^;\[]*;.*extra == ['\"]([\w-]+)['\"].*", requirement)
        if found:
            needed.setdefault(found[2], []).append(found[1])
    for extra, packages in needed.items():
        missing = [package for package in packages if not _is_installed(package)]
        yield f"extra {extra}", f'pip install "leveret[{extra}]" ({", ".join(missing)})' if missing else "installed"


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _memory() -> tuple[int, int]:
    """Bytes in all and to be had, as Linux and a container's limit give them; (0, 0) elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0, 0
    kilobytes = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines)}
    limit = memory_limit() or kilobytes["MemTotal"] * 1024
    return min(limit, kilobytes["MemTotal"] * 1024), min(limit, kilobytes["MemAvailable"] * 1024)
