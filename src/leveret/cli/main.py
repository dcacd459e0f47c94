"""The `leveret` command: finds the command, builds its config, runs it, and turns errors into messages.

Only the table of names is known here, so `leveret --help` imports neither pydantic nor torch. A command's help
page imports its config; torch is imported when a command runs.

Exit codes: 0 done; 1 error; 2 wrong config or command line; 3 wrong data; 4 model not to be had;
5 certificate failed; 70 a bug of ours; 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from leveret.commands import COMMANDS, Command
from leveret.console import Console
from leveret.container import allowed_cores, visible_cores
from leveret.errors import ConfigError, LeveretError
from leveret.ranks import Ranks, end_with_parent
from leveret.spelling import suggest
from leveret.version import VERSION

if TYPE_CHECKING:
    from leveret.config import Config

BUG_EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""
INTERRUPTED_EXIT_CODE = 130
"""128 + SIGINT, as shells report it."""
PIPE_CLOSED_EXIT_CODE = 141
"""128 + SIGPIPE, as shells report it."""

SPINS_BEFORE_SLEEP = "10000"
"""How long an idle OpenMP thread spins for more work, in rounds; libgomp's own default is 30 times as many."""

_EPILOG = (__doc__ or "").partition("Exit codes: ")[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (that of the process by default) and return its exit code."""
    _let_waiting_threads_sleep()
    _begin_no_more_threads_than_cores(next(iter(sys.argv[1:] if arguments is None else arguments), None))
    if arguments is None:
        _show_what_can_be_shown()
        atexit.register(gc.freeze)  # else the last collection looks at all that PyTorch is made of: half a second
    console = Console()
    try:
        if Ranks.from_environment() is not None:
            end_with_parent()  # torchrun itself may be killed
        _CommandLine().main(args=arguments, prog_name="leveret", standalone_mode=False)
    except LeveretError as error:
        ranks = Ranks.from_environment()
        console.error(str(error) if ranks is None or ranks.is_main else f"{ranks}: {error}")
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        help_page = error.ctx.command_path if error.ctx else "leveret"
        console.error(f"{error.format_message()}\nhint: {help_page} --help")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        console.error("interrupted; the same command goes on from here")
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED_EXIT_CODE
    except Exception as error:
        _report_bug(console, error)
        return BUG_EXIT_CODE
    return 0


def _show_what_can_be_shown() -> None:
    """Write ? for characters that the terminal's encoding does not have: a model may write any there is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every program that calls us has one
            stream.reconfigure(errors="replace")


def _let_waiting_threads_sleep() -> None:
    """Let PyTorch's idle threads sleep soon: spinning ones starve the others when the machine is busy (docs/log.md).

    It must be said before torch is loaded, and is not said over the user's own settings.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS_BEFORE_SLEEP)


def _begin_no_more_threads_than_cores(command: str | None) -> None:
    """In a container that has fewer cores than it shows; said before torch is loaded, and not over the user's word.

    `launch` shares them out among its processes itself.
    """
    if command != "launch" and (cores := allowed_cores()) < visible_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


class _CommandLine(click.Group):
    """The commands of the table, each loaded when it is asked for."""

    def __init__(self) -> None:
        version = click.version_option(VERSION, prog_name="leveret", message="%(prog)s %(version)s")
        super().__init__(
            "leveret",
            help="The whole life of an open language model, on a laptop CPU first.",
            epilog=f"leveret COMMAND --help explains a command. Exit codes: {_EPILOG}",
            no_args_is_help=True,
            context_settings={"max_content_width": 110},
        )
        version(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(command.name, command.help) for command in COMMANDS.values()])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        from leveret.cli.arguments import ConfigCommand

        command = ConfigCommand(COMMANDS[name])

        def invoke(words: tuple[str, ...], dry_run: bool, **options: Any) -> None:
            config = command.config_from(words, options)
            if dry_run:
                click.echo(_as_yaml(command.command, config), nl=False)
            else:
                _run(command.command, config, Console())

        command.callback = invoke
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = suggest(name, COMMANDS)
            raise click.UsageError(f"there is no command '{name}'" + (f"; did you mean {near}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)


def _run(command: Command, config: Config, console: Console) -> None:
    ranks = Ranks.from_environment()
    if ranks is not None and not command.parallel:
        raise ConfigError(
            f"leveret {command.name} runs in one process, but torchrun started {ranks.world_size}",
            hint=f"call `leveret {command.name}` without torchrun or `leveret launch`",
        )
    if ranks is not None and not ranks.is_main:
        console = Console(quiet=True)  # it still tells its errors
    result = command.execute(config, console)
    if result.output is not None:
        figures = ", ".join(f"{name} {value}" for name, value in result.summary.items() if not isinstance(value, dict))
        console.info(f"{result.output}" + (f" ({figures})" if figures else ""))
    if result.failure is not None:
        raise LeveretError(result.failure)


def _as_yaml(command: Command, config: Config) -> str:
    """The resolved config; a recipe's commands resolve to the whole recipe."""
    from leveret.yaml_files import dump_yaml

    resolve = command.load_resolve()
    data = config.model_dump(mode="json") if resolve is None else resolve(config)
    return dump_yaml(data)


def _report_bug(console: Console, error: Exception) -> None:
    import platform
    import traceback

    console.error(
        f"this is a bug in leveret, not a mistake of yours: {type(error).__name__}: {error}\n"
        f"Please report it with the command and the lines below "
        f"(leveret {VERSION}, Python {platform.python_version()}, {platform.platform()})."
    )
    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
