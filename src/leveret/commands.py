"""The table of commands: a name, one line of help, and where its config and its function live.

No command is imported here: the command line and the pipeline load one only when it is used.

    run(config: XConfig, console: Console) -> StageResult

is the signature of every command. Run again with the same config, it resumes, or finds that all is done.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leveret.errors import StorageError
from leveret.garbage import without_collecting

if TYPE_CHECKING:
    from leveret.config import Config


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a command leaves behind."""

    output: Path | None
    """The folder it wrote, if it wrote one."""
    summary: dict[str, Any] = field(default_factory=dict)
    """A few figures worth keeping (JSON values): tokens, loss, exact calls ..."""
    failure: str | None = None
    """What went wrong on the way, where the command went on to its end; the shell then sees exit code 1."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One entry of the table."""

    name: str
    help: str
    config: str
    """`package.module:Class` of its config; this module must not import torch."""
    run: str
    """`package.module:function` with the signature above."""
    stage: bool = True
    """Whether a recipe may use it as a stage."""
    parallel: bool = False
    """Whether all processes that `leveret launch` started may run it together."""
    resolve: str | None = None
    """`package.module:function` from its config to what `--dry-run` prints, where that is more than the config."""

    @property
    def folder(self) -> str | None:
        """The folder of this package that its function lives in; None for a command from elsewhere."""
        package, *rest = self.run.partition(":")[0].split(".")
        return rest[0] if package == "leveret" else None

    def load_config(self) -> type[Config]:
        """Import the config class."""
        target: type[Config] = _load(self.config)
        return target

    def load_run(self) -> Callable[[Any, Any], StageResult]:
        """Import the function; this may import torch."""
        target: Callable[[Any, Any], StageResult] = _load(self.run)
        return target

    def execute(self, config: Any, console: Any) -> StageResult:
        """Import the function and call it. StorageError when the disk is full or a place may not be written to."""
        try:
            return self.load_run()(config, console)
        except OSError as error:
            if (told := StorageError.told(error)) is not None:
                raise told from error
            raise

    def load_resolve(self) -> Callable[[Any], dict[str, Any]] | None:
        """Import the function that `--dry-run` prints the result of, if there is one."""
        if self.resolve is None:
            return None
        target: Callable[[Any], dict[str, Any]] = _load(self.resolve)
        return target


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    with without_collecting():  # what imports make stays; a fifth of importing PyTorch is looking for something to free
        return getattr(importlib.import_module(module), name)


def _verb(
    name: str, folder: str, config: str, help: str, *, stage: bool = True, parallel: bool = False,
    resolve: str | None = None,
) -> Command:  # fmt: skip
    return Command(
        name=name,
        help=help,
        config=f"leveret.{folder}.config:{config}",
        run=f"leveret.{folder}.run:run",
        stage=stage,
        parallel=parallel,
        resolve=resolve,
    )


def _desk(name: str, config: str, help: str, *, stage: bool = False) -> Command:
    return Command(
        name=name, help=help, config=f"leveret.cli.{name}_config:{config}", run=f"leveret.cli.{name}:run", stage=stage
    )


def _pipeline(name: str, config: str, help: str, *, resolve: str | None = None, parallel: bool = False) -> Command:
    return Command(
        name=name,
        help=help,
        config=f"leveret.pipeline.config:{config}",
        run=f"leveret.pipeline.{name}:run",
        stage=False,
        parallel=parallel,
        resolve=resolve,
    )


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        _pipeline(
            "run",
            "RunConfig",
            "Run a recipe: its stages in order, skipping those that are done.",
            resolve="leveret.pipeline.run:resolve",
            parallel=True,
        ),
        _pipeline(
            "rehearse",
            "RehearseConfig",
            "Run a recipe end to end with a shrunken model and few steps.",
            resolve="leveret.pipeline.rehearse:resolve",
            parallel=True,
        ),
        _verb(
            "launch",
            "launch",
            "LaunchConfig",
            "Run a recipe in several processes, on one machine or many.",
            stage=False,
            resolve="leveret.launch.run:resolve",
        ),
        _verb("plan", "plan", "PlanConfig", "Say what a recipe will take: memory, time, money, devices.", stage=False),
        _pipeline("validate", "ValidateConfig", "Check recipes and configs; print every mistake at once."),
        _verb("prepare", "prepare", "PrepareConfig", "Gather and generate the data to learn from."),
        _verb("tokenizer", "vocabulary", "TokenizerConfig", "Train a tokenizer."),
        _verb("pretrain", "pretrain", "PretrainConfig", "Train a model from random weights on text.", parallel=True),
        _verb("finetune", "finetune", "FinetuneConfig", "Teach a model conversations and tool calls.", parallel=True),
        _verb("merge", "merge", "MergeConfig", "Make one model of several."),
        _verb("quantize", "quantize", "QuantizeConfig", "Store a model's weights in 8 or 4 bits."),
        _verb("convert", "convert", "ConvertConfig", "Make a model directory of .bin, .safetensors or .gguf files."),
        _verb("export", "export", "ExportConfig", "Write a model for llama.cpp, transformers, vLLM or MLC-LLM."),
        _verb("certify", "certify", "CertifyConfig", "Prove that two forms of a model give the same answers."),
        _verb("evaluate", "evaluate", "EvaluateConfig", "Score a model."),
        _desk("chat", "ChatConfig", "Talk to a model in the terminal."),
        _desk("generate", "GenerateConfig", "Continue a text.", stage=True),
        _verb("serve", "serve", "ServeConfig", "Answer at an OpenAI-compatible endpoint."),
        _desk(
            "show", "ShowConfig", "Show runs in a browser: curves, label X-ray, certificate, evaluation.", stage=True
        ),
        _desk("inspect", "InspectConfig", "Say what a model, shard, checkpoint or run folder holds.", stage=True),
        _desk("doctor", "DoctorConfig", "Check this machine and this installation."),
    )
}
