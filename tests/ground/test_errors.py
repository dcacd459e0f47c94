"""Errors for people: message, place, hint, exit code; the tree in the docstring is the tree in the code."""

from __future__ import annotations

import errno
import os
import pickle
import re

import pytest

import leveret.errors
from leveret.commands import COMMANDS, Command
from leveret.errors import DataError, LeveretError, RequestError, StorageError


def classes() -> dict[str, type[LeveretError]]:
    return {
        name: value
        for name, value in vars(leveret.errors).items()
        if isinstance(value, type) and issubclass(value, LeveretError)
    }


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn: dict[str, str | None] = {}
    parents: list[str] = []
    for line in (leveret.errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+)  ", line)
        if found:
            depth = len(found[1]) // 4
            parents[depth:] = [found[2]]
            drawn[found[2]] = parents[depth - 1] if depth else None
    assert drawn == {
        name: None if error is LeveretError else error.__bases__[0].__name__ for name, error in classes().items()
    }


def test_exit_codes_in_the_docstring_are_those_of_the_classes() -> None:
    drawn = {
        found[1]: int(found[2])
        for found in re.finditer(r"(\w+) +(?:exit code +)?(\d)(?:  |\n)", leveret.errors.__doc__ or "")
    }
    assert drawn and all(classes()[name].exit_code == code for name, code in drawn.items())


def test_a_hint_is_a_line_of_its_own() -> None:
    assert str(LeveretError("it broke")) == "it broke"
    assert str(LeveretError("it broke", hint="mend it")) == "it broke\nhint: mend it"


def test_a_data_error_begins_with_its_place() -> None:
    assert str(DataError("no text", path="a.jsonl", line=3)) == "a.jsonl:3: no text"
    assert str(DataError("no text", path="a.jsonl")) == "a.jsonl: no text"
    assert str(DataError("no text")) == "no text"


def test_errors_travel_between_processes_whole() -> None:
    for error in (
        DataError("m", path="a", line=1, hint="h"),
        RequestError("m", param="temperature", code="bad", hint="h"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "runs/a: No space left on device\nhint: free some space and run the same command again"),
        (errno.EACCES, "runs/a: Permission denied\nhint: choose another place, or change who may write there"),
        (
            errno.ENOTDIR,
            "runs/a: Not a directory\nhint: a file lies where a folder is needed, or the other way round: "
            "choose another place",
        ),
        (errno.EPIPE, "None"),
    ],
)
def test_what_the_system_refuses_is_told_and_what_is_our_mistake_is_not(number: int, told: str) -> None:
    assert str(StorageError.told(OSError(number, os.strerror(number), "runs/a"))) == told


def test_a_full_disk_ends_a_command_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(config: object, console: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Command, "load_run", lambda self: full)
    with pytest.raises(StorageError, match=r"No space left on device\nhint: free some space"):
        COMMANDS["pretrain"].execute(None, None)
