"""Modules that have shapes and no numbers yet: PyTorch's meta device, without random numbers that nothing will hold.

`torch.device("meta")` alone still calls each layer's initialization. On that device it computes nothing, but `normal_`
there goes through PyTorch's tracer, whose import alone takes a second of every start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, modules and tensors are made on the meta device, and `torch.nn.init` leaves them as they are."""
    with torch.device("meta"), _WithoutInit():
        yield


class _WithoutInit(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
