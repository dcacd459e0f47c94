"""Every error a user can meet, as one tree, each with the way out.

    LeveretError                  exit code 1
    ├── ConfigError                         2   a config, a recipe or a command line is wrong
    ├── DataError                           3   a data file is wrong; names the file and the line
    ├── TokenizerError                      1   a tokenizer cannot be read, or lacks a token
    ├── TemplateError                       1   a chat template is wrong or refuses a conversation
    ├── ToolError                           1   a tool set is wrong, or a tool call does not parse
    ├── WeightsError                        1   a model directory cannot be used
    │   ├── MissingWeights                      tensors the model needs are not in the files
    │   ├── UnexpectedWeights                   the files hold tensors the model has no place for
    │   ├── ShapeMismatch                       a tensor has another shape than the config says
    │   ├── CorruptedFile                       a file is cut short or damaged
    │   └── UnsafeFile                          a file asks for code to be run
    ├── TrainingError                       1   training cannot go on, or must not begin
    │   ├── NonFiniteLoss                       the loss is NaN or infinite; nothing was updated
    │   ├── NothingToTrain                      a sample, batch or data set trains no token
    │   ├── CheckpointError                     no checkpoint can be resumed from
    │   └── Stopped                         143   asked to end by SIGTERM; the state is saved
    ├── RequestError                        1   a request to the engine or the server is wrong
    ├── HubError                            4   a model is neither here nor to be fetched
    ├── CertificateError                    5   two routes that must agree do not
    ├── StorageError                        1   the disk is full, or a place may not be written to
    └── MissingExtra                        1   an optional package is not installed

`str(error)` is what the person reads: what happened, with the numbers, then a line `hint: ...` with what to
do next, if there is one. Our own mistakes are `assert`s and never become a LeveretError.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import ClassVar


class LeveretError(Exception):
    """Something the user can put right."""

    exit_code: ClassVar[int] = 1
    """What the shell sees when this error ends a command."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class ConfigError(LeveretError):
    """A config, recipe or command line is wrong."""

    exit_code: ClassVar[int] = 2


class DataError(LeveretError):
    """A data file is wrong: the message begins with `path:line:` where they are known (lines count from 1)."""

    exit_code: ClassVar[int] = 3

    def __init__(
        self, message: str, *, path: str | Path | None = None, line: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = None if path is None else Path(path)
        self.line = line

    def __str__(self) -> str:
        place = [str(part) for part in (self.path, self.line) if part is not None]
        return ":".join([*place, f" {super().__str__()}"]) if place else super().__str__()


class TokenizerError(LeveretError):
    """A tokenizer cannot be read, or does not have the token asked for."""


class TemplateError(LeveretError):
    """A chat template is wrong, or refuses a conversation."""


class ToolError(LeveretError):
    """A tool set is wrong, or a tool call does not parse."""


class WeightsError(LeveretError):
    """A model directory cannot be used."""


class MissingWeights(WeightsError):
    """Tensors that the model needs are not in the files."""


class UnexpectedWeights(WeightsError):
    """The files hold tensors that the model has no place for."""


class ShapeMismatch(WeightsError):
    """A tensor has another shape than the config says."""


class CorruptedFile(WeightsError):
    """A file is cut short or damaged."""


class UnsafeFile(WeightsError):
    """A file of weights asks for code to be run; nothing of it was."""


class TrainingError(LeveretError):
    """Training cannot go on, or must not begin."""


class NonFiniteLoss(TrainingError):
    """The loss or the gradient is NaN or infinite; the update was not made."""


class NothingToTrain(TrainingError):
    """A sample, a batch or a whole data set trains no token."""


class CheckpointError(TrainingError):
    """No checkpoint can be resumed from."""


class Stopped(TrainingError):
    """SIGTERM asked the run to end; the step in hand was finished and the state saved (143 = 128 + SIGTERM)."""

    exit_code: ClassVar[int] = 143


class RequestError(LeveretError):
    """A request to the engine or the server is wrong; `param` and `code` are OpenAI's fields of these names."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code


class HubError(LeveretError):
    """A model is neither on this machine nor to be fetched."""

    exit_code: ClassVar[int] = 4


class CertificateError(LeveretError):
    """Two routes that must give the same answer do not."""

    exit_code: ClassVar[int] = 5


class MissingExtra(LeveretError):
    """An optional package is needed and not installed."""


class StorageError(LeveretError):
    """The disk is full, or a file or folder may not be written to (or read)."""

    @classmethod
    def told(cls, error: OSError) -> StorageError | None:
        """What the system refused, in words for people; None when the error is of another kind."""
        place = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return cls(f"{place}{error.strerror}", hint="free some space and run the same command again")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return cls(f"{place}{error.strerror}", hint="choose another place, or change who may write there")
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            return cls(
                f"{place}{error.strerror}", hint="a file lies where a folder is needed, or the other way round: "
                "choose another place"
            )  # fmt: skip
        return None
