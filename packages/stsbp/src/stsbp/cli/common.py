"""Functions that commands share: opening the backend, threads, reading shapes such as `2x34x34`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import click
from stsbp_spec.distributed.collective import Rendezvous
from stsbp_spec.distributed.launcher import rendezvous_from_environment
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.errors import BackendError
from stsbp_spec.models.decoders import equally_near
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.registry import default_backend, load_backend, open_backend
from stsbp_spec.typing import Float64
from stsbp_spec.validation import shown

from stsbp.cli import TYPED, Finite, Globals
from stsbp.errors import ConfigError, did_you_mean, printable
from stsbp.processes.launcher import launch, parent
from stsbp.threads import MOST_THREADS, cores

__all__ = [
    "MOST_PROCESSES",
    "Choice",
    "Finite",
    "OptionalPaths",
    "batch_size_option",
    "checkpoint_option",
    "choose_backend",
    "completes",
    "deadline_in",
    "meeting",
    "no_events",
    "parse_shape",
    "processes",
    "program",
    "say",
    "say_distances",
    "say_warning",
    "split_option",
    "stop_after",
    "threads_option",
]

MOST_PROCESSES = 1024
_COMES = 60.0
"""Shortest time in seconds to wait until the other processes begin. They must first load libraries."""

_LONGEST_SHAPE = 100


def say(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Print lines that contain text from outside, without control characters."""
    click.echo(printable(text, lines=True), nl=nl, err=err)


def say_warning(text: str) -> None:
    """Print a warning, like those of a training run."""
    say(f"warning: {text}", err=True)


def no_events(binning: EventBinning) -> str:
    """What is wrong with a recording without an event in the window."""
    window = "" if binning.window_us is None else f" in the window of {binning.window_us / 1000:g} ms"
    return f"it has no events{window}, so the answer of the network says nothing; check the unit of its times"


def say_distances(names: Iterable[str], distances: Float64) -> None:
    """Print the distances `[K]` to the label sequences; if several are equally near, also their number."""
    say(
        "  distances: "
        + "  ".join(f"{printable(name)} {value:.3f}" for name, value in zip(names, distances, strict=True))
    )
    equal = int(equally_near(distances[None]).sum())
    if equal > 1:
        click.echo(f"  {equal} label sequences are equally far: the lowest class is the answer")


def program() -> str:
    """The word with which a shell starts this command line: `stsbp`, or its path if it is not on the PATH."""
    path_beside_python = shutil.which("stsbp", path=os.path.dirname(sys.executable))
    return "stsbp" if path_beside_python is None or shutil.which("stsbp") is not None else path_beside_python


class OptionalPaths(click.Command):
    """A command whose option `--resume` or `--stream` can stand without its path."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # In `--resume=-RUN`, click takes -RUN for another option, because --resume can stand alone.
        at_dash = re.compile("^(--resume|--stream)=(?=-.)")
        return super().parse_args(ctx, [at_dash.sub(rf"\1={os.curdir}/", word) for word in args])


class Choice(click.Choice[str]):
    """One of several words. An error message suggests the most similar one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message.removesuffix('.')}{did_you_mean(str(value), self.choices)}.", param, ctx)


def completes(*groups: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Shell completion of a word: the names that begin with it."""

    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        return [name for names in groups for name in names if name.startswith(incomplete)]

    return complete


def threads_option(text: str, **option_arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--threads` with a help text."""
    return click.option("--threads", type=click.IntRange(0, MOST_THREADS), help=text, **option_arguments)


def checkpoint_option(*name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--checkpoint`. Its value is passed as `checkpoint`, unless another name is given."""
    choices = Choice(["last", "best"])
    return click.option(
        "--checkpoint", *name, default="last", show_default=True, type=choices, help="Checkpoint to read."
    )


def split_option(text: str = "Samples to evaluate.") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--split` with a help text."""
    splits = Choice(["test", "validation", "train"])
    return click.option("--split", default="test", show_default=True, type=splits, help=text)


batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(1, 10**9),
    help="Number of samples to compute at a time.  [default: the batch size of the run]",
)


def choose_backend(options: Globals, rendezvous: Rendezvous | None = None) -> AbstractBackend:
    """Open the requested backend; otherwise torch if it is installed, else the first installed one. Prints its name.

    With several processes, only rank 0 prints it, with their number, and each process opens its own GPU.

    Raises:
        BackendError: the backend is not installed or cannot run.
    """
    # Otherwise, waiting threads of two libraries would compete for the processor.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    name = options.backend or default_backend()
    device = options.device
    if rendezvous is not None:
        backend_class = load_backend(name)
        backend_class.connect(rendezvous, device)
        device = _own_gpu(backend_class, rendezvous) if device == "cuda" else device
    backend = open_backend(name, device)
    processes = "" if rendezvous is None else f", {rendezvous.size} processes"
    chosen = "" if options.backend is not None else " (chosen by default, see stsbp backends)"
    # An error of this message must not end the program.
    with contextlib.suppress(OSError):
        if rendezvous is None or rendezvous.rank == 0:
            click.echo(f"backend {name} on {backend.device}{processes}{chosen}", err=True)
    return backend


def _own_gpu(backend_class: type[AbstractBackend], rendezvous: Rendezvous) -> str:
    """The GPU of a process: the GPU whose number is its local rank, or the only one that its launcher made visible.

    Raises:
        BackendError: there are fewer GPUs than processes on this machine.
    """
    gpu_names = [gpu.name for gpu in backend_class.devices() if gpu.problem is None and gpu.name.startswith("cuda")]
    local_gpu = f"cuda:{rendezvous.local_rank}"
    if local_gpu in gpu_names:
        return local_gpu
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if not gpu_names or rendezvous.local_rank == 0 or (visible != [""] and len(visible) == 1):
        return "cuda"
    raise BackendError(
        f"rank {rendezvous.rank} of {rendezvous.size} has no GPU of its own. --device cuda needs "
        f"one GPU for each process, but this is process {rendezvous.local_rank} (counted from 0) "
        f"on a machine with {len(gpu_names)} GPUs. If the launcher does not number the processes of "
        "each machine, set LOCAL_RANK"
    )


stop_after = click.option(
    "--stop-after",
    type=Finite(0, 1e9, min_open=True),
    metavar="MINUTES",
    help="When this many minutes have passed, finish the current update, save, and exit with code 75.",
)
"""The option `--stop-after` of commands that train, for machines that are only available for a limited time."""


def deadline_in(minutes: float | None) -> float | None:
    """The time of `time.monotonic` after so many minutes; None: never."""
    return None if minutes is None else time.monotonic() + 60 * minutes


def processes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that can run in several processes."""
    for option in (
        click.option(
            "--rank-timeout",
            type=Finite(1, 1e6),
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="End all processes if one of them makes no progress for this many seconds.",
        ),
        click.option(
            "--processes",
            type=click.IntRange(1, MOST_PROCESSES),
            help="Share the work among this many processes on this machine.  [default: the number that a launcher "
            "such as torchrun has started, or 1]",
        ),
    ):
        function = option(function)
    return function


def meeting(count: int | None, timeout: float, threads: int) -> Rendezvous | None:
    """Where the processes of this command meet; None: there is only this process.

    If `--processes` requests several processes and no launcher has started this one, it starts them, and exits with
    their exit code.

    Raises:
        BackendError: the variables of a launcher contradict each other.
        ConfigError: the launcher has started another number of processes than `--processes` requests.
    """
    rendezvous = rendezvous_from_environment(os.environ, max(timeout, _COMES))
    if rendezvous is not None and count not in (None, rendezvous.size):
        raise ConfigError(
            f"--processes {count} would start processes, but according to {rendezvous.launcher} there "
            f"are {rendezvous.size} already. Leave --processes out, or unset the variables of the "
            "launcher"
        )
    if rendezvous is None and (launcher_process := parent()) is not None:
        launcher_process.stop_with_parent()
    if rendezvous is None and count is not None and count > 1:
        if count > cores():
            oversubscription = (
                f"{count} processes share {cores()} cores, and each process loads its own copy of the libraries"
            )
            click.echo(f"{oversubscription}; more processes than cores are no faster", err=True)
        sys.exit(launch(click.get_current_context().find_root().meta[TYPED], count, threads))
    # Lost connections are reported in one line, so silence the library's own long messages.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    return rendezvous


def parse_shape(text: str) -> tuple[int, ...]:
    """Read `2x34x34`.

    Raises:
        ConfigError: the text is not a shape.
    """
    parts = text.lower().split("x")
    if len(text) > _LONGEST_SHAPE or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ConfigError(f"a shape is written like 2x34x34 (channels x rows x columns) or 64, got {shown(text)}")
    return tuple(int(part) for part in parts)
