"""`act` marks a function that does something in the world: the person is asked before a model may call it.

    from leveret.tools.act import act

    @act
    def send_mail(to: str, text: str) -> str: ...

What only looks something up needs no mark. The decorator changes nothing but the mark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_MARK = "__leveret_act__"


def act(function: Function) -> Function:
    """The function itself, marked."""
    setattr(function, _MARK, True)
    return function


def is_act(function: Callable[..., Any]) -> bool:
    """Whether the function is marked."""
    return bool(getattr(function, _MARK, False))
