"""Triton's products: its numbers by its interpreter, its program compiled for GPUs, and what happens when it fails."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leveret.kernels import triton_product
from leveret.kernels.int_matmul import matmul_plain
from leveret.kernels.native.library import VARIABLE
from leveret.kernels.triton_product import MOST_ROWS, TritonWeight, triton_refusal, watch
from leveret.precision.int4 import Int4Linear
from leveret.precision.int8 import Int8Linear
from leveret.precision.linear import QuantizedLinear
from leveret.precision.swap import choose_product

CUDA = torch.device("cuda", 0)
has_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_apart(script: str, *arguments: str, **environment: str) -> list[str]:
    """What a script beside this file prints, in a process whose settings of Triton touch no other test."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(autouse=True)
def _fresh_watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    watch.cache_clear()
    yield
    watch.cache_clear()


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> QuantizedLinear:
    """An int4 Linear that believes to be on a GPU with Triton."""
    torch.manual_seed(0)
    monkeypatch.setattr(QuantizedLinear, "_device", lambda layer: CUDA)
    monkeypatch.setattr(triton_product.importlib.util, "find_spec", lambda name: name)
    quantized = Int4Linear.from_linear(nn.Linear(128, 48).requires_grad_(False), group_size=32)
    quantized.product = "packed"
    return quantized


def plain(layer: QuantizedLinear, x: Tensor) -> Tensor:
    return matmul_plain(x, layer.integers()) + layer.bias.to(x.dtype)


def stand_in(monkeypatch: pytest.MonkeyPatch, layer: QuantizedLinear, factor: float = 1.0) -> list[int]:
    """Let the twin times a factor answer for Triton; the rows of each product."""
    calls: list[int] = []

    def multiply(x: Tensor, weight: TritonWeight) -> Tensor:
        calls.append(x.numel() // x.shape[-1])
        return matmul_plain(x, layer.integers()) * factor

    monkeypatch.setattr(triton_product, "multiply_triton", multiply)
    return calls


@pytest.mark.slow
@has_triton
def test_the_program_gets_the_numbers_of_the_twin_and_of_another_dequantization() -> None:
    *wrong, last = run_apart("triton_interpreted.py", TRITON_INTERPRET="1")
    assert not wrong, "\n".join(wrong)
    assert last == "64 4"


@pytest.mark.slow
@has_triton
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_program_compiles_for_a_gpu_that_is_not_there(capability: str, tmp_path: Path) -> None:
    lines = run_apart("triton_compiled.py", capability, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert len(lines) == 6 and all(f"sm_{capability}," in line for line in lines)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 16, 33, MOST_ROWS])
@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
def test_on_a_gpu_the_products_are_trusted(kind: type[QuantizedLinear], rows: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    for size, symmetric, dtype in ((128, True, torch.bfloat16), (32, False, torch.float16)):
        quantized = kind.from_linear(nn.Linear(1024, 528), group_size=size, symmetric=symmetric).to("cuda")
        quantized.product = "packed"
        x = torch.randn(rows, 1024, device="cuda", dtype=dtype)
        torch.testing.assert_close(quantized(x), plain(quantized, x), rtol=0.02, atol=0.02)
    assert watch().failure is None and len(watch().trusted) == 2


def test_few_rows_are_multiplied_by_triton_and_many_by_the_twin(
    monkeypatch: pytest.MonkeyPatch, layer: QuantizedLinear
) -> None:
    calls = stand_in(monkeypatch, layer)
    for rows, dtype in ((3, torch.bfloat16), (3, torch.bfloat16), (MOST_ROWS + 1, torch.bfloat16), (2, torch.float32)):
        x = torch.randn(rows, 128).to(dtype)
        torch.testing.assert_close(layer(x), plain(layer, x), rtol=0, atol=0)
    assert calls == [3, 3, 3], "the first product is made once more, to be compared"
    layer(torch.randn(20, 128).bfloat16())
    assert calls[3:] == [20, 20], "another kind is compared by itself"
    assert layer(torch.randn(0, 128).bfloat16()).shape == (0, 48)


def test_a_copy_that_is_kept_is_multiplied(monkeypatch: pytest.MonkeyPatch, layer: QuantizedLinear) -> None:
    calls = stand_in(monkeypatch, layer)
    layer.product = "copy"
    layer(torch.randn(1, 128).bfloat16())
    assert not calls


def test_activations_that_need_a_gradient_get_one(monkeypatch: pytest.MonkeyPatch, layer: QuantizedLinear) -> None:
    calls = stand_in(monkeypatch, layer)
    x = torch.randn(1, 128).bfloat16().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and not calls


@pytest.mark.parametrize("trouble", ["wrong numbers", "not a number", "raises", "raises later"])
def test_where_triton_fails_there_is_one_warning_and_the_twin_serves(
    monkeypatch: pytest.MonkeyPatch, layer: QuantizedLinear, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    calls = stand_in(monkeypatch, layer, {"wrong numbers": 1.1, "not a number": float("nan")}.get(trouble, 1.0))
    working = triton_product.multiply_triton

    def broken(x: Tensor, weight: TritonWeight) -> Tensor:
        if trouble == "raises" or calls:
            raise RuntimeError("no such instruction")
        return working(x, weight)

    if trouble.startswith("raises"):
        monkeypatch.setattr(triton_product, "multiply_triton", broken)
    with caplog.at_level(logging.WARNING, logger="leveret"):
        for rows in (1, 3, 33):
            x = torch.randn(rows, 128).bfloat16()
            torch.testing.assert_close(layer(x), plain(layer, x), rtol=0, atol=0)
    what = {"wrong numbers": "off by 0.1", "not a number": "off by nan"}.get(
        trouble, "RuntimeError: no such instruction"
    )
    assert len(caplog.records) == 1 and what in caplog.text and "int4 product in bfloat16" in caplog.text
    assert len(calls) == (0 if trouble == "raises" else 1), "it is asked no more"
    assert what in str(layer.packed_refusal())


def test_a_gpu_that_is_full_is_not_triton_s_fault(monkeypatch: pytest.MonkeyPatch, layer: QuantizedLinear) -> None:
    def full(x: Tensor, weight: TritonWeight) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(triton_product, "multiply_triton", full)
    with pytest.raises(torch.OutOfMemoryError):
        layer(torch.randn(1, 128).bfloat16())
    assert watch().failure is None


def test_the_choice_for_a_large_model_on_a_gpu_says_who_reads(
    monkeypatch: pytest.MonkeyPatch, layer: QuantizedLinear
) -> None:
    monkeypatch.setattr("leveret.precision.swap.WORKING_COPY_BYTES", 100)
    model = nn.Sequential(layer)
    assert "packed" in choose_product(model) and "Triton" in choose_product(model) and layer.product == "packed"
    monkeypatch.setenv(VARIABLE, "off")
    assert f"{VARIABLE}=off" in choose_product(model) and layer.product == "plain"


def test_what_triton_does_not_multiply_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_product.importlib.util, "find_spec", lambda name: name)
    refusal = lambda inputs, outputs, device=CUDA: triton_refusal(  # noqa: E731
        bits=4, in_features=inputs, out_features=outputs, device=device
    )
    assert refusal(64, 64) is None
    assert "on cpu" in str(refusal(64, 64, torch.device("cpu")))
    assert "multiples of 8" in str(refusal(60, 64)) and "not 60" in str(refusal(60, 64))
    assert "reach" in str(refusal(2**16, 2**15))
    monkeypatch.setattr(triton_product.importlib.util, "find_spec", lambda name: None)
    assert refusal(64, 64) == "Triton is not installed"


def test_products_on_a_cpu_do_not_import_triton() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules\n"
        "from leveret.precision.int4 import Int4Linear\n"
        "layer = Int4Linear.from_linear(torch.nn.Linear(64, 32), group_size=32)\n"
        "for layer.product in ('plain', 'copy', 'packed'): layer(torch.randn(1, 64).bfloat16())\n"
        "assert 'leveret.kernels.triton_few_rows' not in sys.modules and ('triton' in sys.modules) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
