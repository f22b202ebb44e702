"""Kernels compiled before they are called: by a process beside one that finds none, and by `stsbp backends --compile`.

numba compiles in one thread. So a process that begins with an empty cache starts a second one, which compiles the
kernels of a first training step from the last to the first. Each kernel is claimed by the process that compiles it; the
other one goes on with the next, or waits for it where it needs it.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, NamedTuple

from numba import boolean, config, float32, float64, int16, int32, int64, types, uint8
from stsbp_spec.equations import neuron_equations
from stsbp_spec.neurons import NEURONS
from stsbp_spec.synapses import PSP

from stsbp_cpu import neurons
from stsbp_cpu.compiling import announce, own_folder
from stsbp_cpu.optim import adamw

__all__ = ["FIRST", "OTHERS", "Kernel", "fill", "kernel", "prepare"]

_DTYPES = {"b": uint8, "h": int16, "i": int32, "l": int64, "f": float32, "d": float64, "?": boolean}

FIRST: tuple[str, ...] = (
    "reductions._largest_bits i1",
    "reductions._round_rows f2 f f f2 l1 l1",
    "sparse.kernels._forward l b5 l b4 l f1 ? l l f5 b5 f3 f1 l f2 l",
    "dense._convolve f4 f3 f4 l l l l l l",
    "neurons._forward l f1 f2 l f2 b2 f3 f2 l ? ?",
    "sparse.spikes.density b4 l l",
    "synapses.avgpool2d.forward b4 f4 l l f",
    "dense._product f2 f2 f2",
    "neurons._backward l f1 f2 f3 f2 l f2 f2 f2 l ? ?",
    "dense._product_of_rows f2 f2 f2",
    "sparse.kernels._backward l b5 l b4 l l l f5 f3 f5 l f5 f2 f1 l f2 f2 l",
    "dense._input_error f4 f3 f4 l l l l l l",
    "dense._gradient f4 f4 f4 l l l l l",
    "synapses.avgpool2d.backward f4 f4 l l f",
    "reductions._squares f1 f",
    "reductions._count b1",
    "optim.adamw._update l f1 f1 f1 f1 f1 f1 f1 f1 l",
    "recurrence._recur l f1 l2 l2 ?1 l l l ?",
)
"""Kernels in the order in which a first training step with convolutions calls them: module and name, then of each
argument its type and, of an array, how many axes it has."""

OTHERS: tuple[str, ...] = (
    "sparse.chosen._forward l b5 l b4 l h1 f l l l l f5 b5 f3 f1 l f2 l l",
    "sparse.linear._forward b2 f2 f2 l",
    "sparse.linear._gradient b2 f2 f2 l",
    "sparse.linear._exact_gradient b2 d2 d2 l",
    "sparse.linear.turn f2 f2 l ? f",
    "sparse.linear.turn d2 d2 l ? f",
    "sparse.linear.turn f2 h2 l ? f",
    "populations._forward l f1 f3 f2 l1 l f2 l l f2 b2 f3 f2",
    "populations._backward l f1 f2 f3 f2 l f2 l l l l f3 f2 f2",
    "synapses.conv2d_bytes.doubled b5 b4 l l b5",
    "synapses.dropout._keep_mask l l l l l l b3",
    "synapses.avgpool2d.forward f4 f4 l l f",
    "synapses.maxpool2d.forward b4 b4 i4 l l",
    "synapses.maxpool2d.forward f4 f4 i4 l l",
    "synapses.maxpool2d.backward f4 i4 f4 l l",
    "synapses.batchnorm._moments f2 f f l l3",
    "synapses.batchnorm._error_moments f2 f2 f f l d3",
    "dense._convolve b4 f3 f4 l l l l l l",
    "dense._product d2 d2 d2",
    "dense._product_of_rows d2 d2 d2",
    "dense._gradient b4 f4 f4 l l l l l",
    "dense._gradient b4 d4 d4 l l l l l",
    "dense._gradient f4 d4 d4 l l l l l",
    "dense._input_error d4 d3 f4 l l l l l l",
    "synapses.conv2d._unfold b4 f6 l l l l l l",
    "synapses.conv2d._unfold f4 f6 l l l l l l",
    "synapses.conv2d._unfold b4 d6 l l l l l l",
    "synapses.conv2d._unfold f4 d6 l l l l l l",
    "synapses.conv2d._add_windows f6 f4 l l l l l l",
    "synapses.conv2d._add_windows d6 f4 l l l l l l",
    "reductions._counts b3 i1",
    "reductions._round_errors f1 f f f f1 l2",
)
"""The same of kernels that other networks and settings call."""


class Kernel(NamedTuple):
    """A kernel for arguments of some types."""

    dispatcher: Any
    types: tuple[types.Type, ...]

    @property
    def file(self) -> str:
        """Its name in the folder of kernels."""
        name: str = self.dispatcher._cache._file(self.types)
        return name


def kernel(line: str) -> Kernel:
    """What a line of `FIRST` or `OTHERS` says."""
    name, *arguments = line.split()
    module, _, function = name.rpartition(".")
    return Kernel(getattr(import_module(f"stsbp_cpu.{module}"), function), tuple(map(_type, arguments)))


def _type(text: str) -> types.Type:
    dtype = _DTYPES[text[0]]
    return types.Array(dtype, int(text[1:]), "C") if len(text) > 1 else dtype


def fill() -> tuple[int, int]:
    """Compile all kernels, and the steps of the spec's neurons and optimizer as they are by default.

    As many processes as there are processors share the work. Returns how many kernels were compiled, and how many there
    are.
    """
    folder, wanted = own_folder(), [kernel(line) for line in FIRST + OTHERS]
    missing = [each for each in wanted if folder is None or folder.read(each.file) is None]
    shared = missing and folder is not None and folder.kept
    helpers = [_start(str(i), str(_cores())) for i in range(1, _cores())] if shared else []
    _compile(missing)
    for equations in (neuron_equations(PSP().filter(), model()) for model in NEURONS.values()):
        neurons.fire(equations.forward)
        neurons.propagate(equations.summing, len(equations.terms))
    adamw.step_of_update()
    for helper in helpers:
        helper.wait()
    return len(missing), len(wanted)


def prepare(*, dense: bool) -> None:
    """Called when a CPU is opened: announce what is compiled, and let a process help where nothing is there yet.

    The environment variable `STSBP_COMPILE_BESIDE=0` keeps it from that.

    Args:
        dense: these kernels compute what is not sparse as well.
    """
    announce()
    if _helpers or _cores() < 2 or config.DISABLE_JIT or os.environ.get("STSBP_COMPILE_BESIDE") == "0":
        return
    folder = own_folder()
    if folder is not None and folder.kept and folder.read(kernel(FIRST[0]).file) is None:
        atexit.register(_end)
        _helpers.append(_start("dense" if dense else "sparse"))


_helpers: list[subprocess.Popen[bytes]] = []
"""Processes that `prepare` started."""


def _end() -> None:
    for helper in _helpers:
        helper.terminate()
        helper.wait()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(*share: str) -> subprocess.Popen[bytes]:
    """`main` in a process of its own."""
    # -P: nothing is imported from the folder in which the user works.
    command = [sys.executable, "-P", "-m", "stsbp_cpu.ahead", str(os.getpid()), *share]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _compile(wanted: Iterable[Kernel], going_on: Callable[[], bool] = lambda: True) -> None:
    """Compile those that are not there and that no other process compiles, while it is `going_on`."""
    folder = own_folder()
    for each in wanted:
        if not going_on():
            return
        if folder is None or (folder.read(each.file) is None and folder.is_free(each.file)):
            each.dispatcher.compile(each.types)


def main(parent: str, *share: str) -> None:
    """Compile kernels for the process number `parent`, as long as that is there.

    Args:
        parent: number of a process.
        share: what `prepare` says: compile what is called first, from the last kernel on; or a number and how many
            shares there are: compile all kernels, beginning with that share.
    """

    def alive() -> bool:
        return os.getppid() == int(parent)

    if len(share) == 2:
        lines, (number, count) = FIRST + OTHERS, map(int, share)
        begin = number * len(lines) // count
        _compile(map(kernel, lines[begin:] + lines[:begin]), alive)
    elif (folder := own_folder()) is not None and (claim := folder.claim("helper")):
        lines = tuple(line for line in reversed(FIRST) if share == ("dense",) or not line.startswith("dense."))
        _compile(map(kernel, lines), alive)
        claim.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
