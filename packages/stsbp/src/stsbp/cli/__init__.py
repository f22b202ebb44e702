"""The command line `stsbp`. This module imports nothing heavier than click, so that `stsbp --help` is quick.

A command is a module of this package with a function `command` (`_module`). It is imported when the command is called.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import keyword
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from stsbp.interrupts import EXIT_CODE, INTERRUPTED, install

__all__ = ["COMMANDS", "TYPED", "Finite", "Globals", "PathName", "cli", "main"]

COMMANDS = {
    "train": "Train a network on a data set.",
    "evaluate": "Test a trained network and show its accuracy, loss and spike rates.",
    "predict": "Classify images, recordings, sounds or arrays.",
    "export": "Write a trained network as NIR, ONNX or C.",
    "convert": "Copy a run, and change the gain of the synapses in the copy.",
    "import": "Make a run from the network in a NIR file.",
    "nir-check": "Show how several programs would read a NIR file.",
    "curves": "Show accuracy against time, spikes and noise.",
    "report": "Write a run as one HTML file.",
    "compare": "Show runs side by side.",
    "datasets": "List data sets, or show the requirements and settings of one data set.",
    "presets": "List published experiments (presets), or show the settings of one preset.",
    "models": "List trained networks that are installed, or show one of them.",
    "experiment": "Train a preset with several seeds and write a table of the results.",
    "sweep": "Vary settings over many runs and show which values are best.",
    "networks": "Show a network as a table.",
    "equations": "Show the equations of a neuron, a loss or an optimiser, as a backend runs them.",
    "backends": "List backends and their devices, and why a backend cannot run.",
    "benchmark": "Measure a backend and compare it with the limits of this machine.",
}
"""Commands in the order of the help page, each with a line of help."""


TYPED = "stsbp.typed"
"""Key in `click.Context.meta` of the words that were typed after `stsbp`."""
_BEFORE = ("--backend", "--device", "--file-budget")
"""Options of `stsbp` itself."""
_SHORT = 1000
"""Largest length in characters of a message that is not shortened."""


class Finite(click.FloatRange):
    """A range of floats without NaN. Comparisons with NaN would not refuse it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class PathName(click.Path):
    """A path that is not empty. An empty one would be the current folder, for example for a variable that is unset."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if not os.fspath(value):
            self.fail("it is empty; the current folder is named by a dot.", param, ctx)
        return super().convert(value, param, ctx)


@dataclass(frozen=True)
class Globals:
    """Options before the name of the command."""

    backend: str | None
    device: str | None
    file_budget: float | None = None

    @property
    def words(self) -> list[str]:
        """The given options, as they are typed."""
        budget = None if self.file_budget is None else f"{self.file_budget:g}"
        named = {"--backend": self.backend, "--device": self.device, "--file-budget": budget}
        return [word for name, value in named.items() if value is not None for word in (name, value)]


class _Failure(click.ClickException):
    """An error raised on purpose, shown without a traceback."""

    def __init__(self, error: Any) -> None:
        super().__init__(str(error))
        self.exit_code: int = error.exit_code  # type: ignore[misc]


def _module(name: str) -> str:
    """The module of a command: `nir-check` is in nir_check.py; `import`, a Python keyword, is in import_.py."""
    module = name.replace("-", "_")
    return f"{module}_" if keyword.iskeyword(module) else module


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"stsbp.cli.{_module(cmd_name)}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from stsbp.errors import did_you_mean

            ctx.fail(f"{error.message.removesuffix('.')}{did_you_mean(args[0], COMMANDS)}.")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(self, info_name: str | None, args: list[str], *arguments: Any, **options: Any) -> click.Context:
        typed_words = tuple(args)
        with _legible():
            ctx = super().make_context(info_name, args, *arguments, **options)
        ctx.meta[TYPED] = typed_words
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _legible():
                return super().invoke(ctx)
        except BrokenPipeError:
            raise click.exceptions.Exit(_leave_closed_pipe()) from None
        except Exception as error:
            # Imported here, because it also imports numpy.
            from stsbp.errors import understood

            if (user_error := understood(error)) is not None:
                raise _Failure(user_error) from error
            raise


@contextlib.contextmanager
def _legible() -> Iterator[None]:
    """Remove control characters and shorten long texts in click's own messages, which repeat what was typed."""
    try:
        yield
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and error.option_name in _BEFORE and error.ctx is not None:
            name = error.option_name
            usage = f"stsbp {name} NAME {error.ctx.info_name} ..."
            raise click.UsageError(f"{name} must be written before the command: {usage}", error.ctx) from None
        if len(error.message) > _SHORT or not error.message.isprintable():
            # Imported here, because it also imports numpy.
            from stsbp.errors import legible

            error.message = legible(error.message)  # type: ignore[misc]
        raise


def _open_closed_streams() -> None:
    """Redirect closed standard streams (`>&-`) to nowhere. Otherwise a file opened later would get their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        with contextlib.suppress(OSError):
            try:
                os.fstat(number)
            except OSError:
                # Also in place of the standard input, where reading is then an error and not the end of a file.
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding does not have must not end the program.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _give_up_unwritable() -> None:
    """Drop output that a full disk did not accept. Otherwise Python tries again at exit, and prints an error."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _leave_closed_pipe() -> int:
    """Handle a closed pipe: print nothing, also when Python flushes at exit. Returns the exit code."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return 141


@contextlib.contextmanager
def _budgeted(gib: float) -> Iterator[None]:
    """Set the budget for the contents of files. Child processes inherit it."""
    # Imported here, because it also imports numpy.
    from stsbp.budget import VARIABLE

    former_budget = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = f"{gib:g}"
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if former_budget is not None:
            os.environ[VARIABLE] = former_budget


def _complete_backend(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    # Imported here, because it also imports numpy.
    from stsbp_spec.registry import installed_backends

    return [name for name in installed_backends() if name.startswith(incomplete)]


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--backend",
    metavar="NAME",
    help="Backend to use. `stsbp backends` lists the backends.  [default: torch; if torch is not installed, another "
    "backend]",
    shell_complete=_complete_backend,
)
@click.option("--device", metavar="NAME", help="Device of the backend, for example cpu or cuda.")
@click.option(
    "--file-budget",
    metavar="GIB",
    type=Finite(0, 2**20, min_open=True),
    help="Let the contents of a file take this many GiB in memory and in the cache. Files that would take more, and "
    "much more than their own size, are refused.  [default: 1]",
)
@click.version_option(package_name="stsbp", prog_name="stsbp")
@click.pass_context
def cli(ctx: click.Context, backend: str | None, device: str | None, file_budget: float | None) -> None:
    """Train deep spiking neural networks on labels that are spike sequences."""
    ctx.obj = Globals(backend, device, file_budget)
    if file_budget is not None:
        ctx.with_resource(_budgeted(file_budget))


def main() -> None:
    """Entry point: run `cli`, with the exit codes of docs/cli.md."""
    interrupts = install()
    code: Any = EXIT_CODE
    try:
        _open_closed_streams()
        try:
            code = _run()
            code = code if interrupts.first is None else EXIT_CODE
        finally:
            _give_up_unwritable()
        interrupts.close(code)
    except BaseException:
        # A signal raised this, or a library that changed the error of a signal.
        if interrupts.first is None:
            raise
        code = EXIT_CODE
        interrupts.close(code)
    sys.exit(code)


def _early_end(error: EOFError) -> str:
    """Message for the end of a file where more was expected."""
    if "marshal" not in str(error):
        return f"a file ended early: {error}"
    # Python writes these files, on a full disk only in part, and does not notice.
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return (
        f"a compiled file of Python ended early ({error}); remove the folders __pycache__ in {folder} and in the "
        "packages beside it"
    )


_OF_OUTPUT = {errno.EBADF, errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EPIPE, errno.EACCES, errno.EROFS}
"""Errors with which a system refuses to write the standard output."""


def _refused_by_system(error: OSError) -> str:
    """A sentence for an error that no command has expected: most are of the standard output."""
    reason = error.strerror or str(error)
    is_of_output = error.errno in (None, *_OF_OUTPUT)
    return f"{'cannot write the output' if is_of_output else 'the system refused'}: {reason}"


def _run() -> Any:
    """Run the command line. Returns the exit code."""
    try:
        os.getcwd()
    except FileNotFoundError:
        from stsbp.errors import NO_WORKING_FOLDER

        # torch ends the process here without an exception, and other libraries name a file of their own.
        with contextlib.suppress(OSError):
            click.echo(f"Error: {NO_WORKING_FOLDER}", err=True)
        return 1
    try:
        # `cli.main` returns the code of an early exit, for example after --help, else None.
        code = cli.main(prog_name="stsbp", standalone_mode=False)
        sys.stdout.flush()
        return code
    except SystemExit as error:
        return error.code
    except click.ClickException as error:
        # If nothing can be printed, the exit code still reports the error.
        with contextlib.suppress(OSError):
            error.show()
        return error.exit_code
    except click.Abort as error:
        with contextlib.suppress(OSError):
            # click turns the end of any input into an `Abort`, also that of a damaged file that is imported.
            if isinstance(error.__cause__, EOFError):
                click.echo(f"Error: {_early_end(error.__cause__)}", err=True)
                return 1
            click.echo(INTERRUPTED, err=True)
        return EXIT_CODE
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            click.echo(INTERRUPTED, err=True)
        return EXIT_CODE
    except BrokenPipeError:
        return _leave_closed_pipe()
    except OSError as error:
        with contextlib.suppress(OSError):
            click.echo(f"Error: {_refused_by_system(error)}", err=True)
        return 1
