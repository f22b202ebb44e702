"""Compiles kernels before they are called.

numba compiles in one thread. Therefore, a process that starts with an empty cache starts a second process. The second
process compiles the kernels of a first training step, beginning with the last kernel. A process claims each kernel that
it compiles. The other process continues with the next kernel, or waits if it needs the claimed kernel.
`stsbp backends --compile` compiles all kernels (`fill`).
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numba import boolean, float32, float64, int16, int32, int64, types, uint8
from stsbp_spec.equations.assembly import COUNT, loss_equations, neuron_equations
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import NEURONS
from stsbp_spec.models.optim import SGD, Adam, AdamW
from stsbp_spec.networks.ops import PSP

from stsbp_cpu.engine.compiling import announce, own_folder
from stsbp_cpu.engine.settings import check_settings
from stsbp_cpu.equations.recurrence import step_of
from stsbp_cpu.models import neurons
from stsbp_cpu.models.optim import adamw, sgd

__all__ = ["FIRST", "OTHERS", "Kernel", "fill", "kernel", "prepare"]

_DTYPES = {"b": uint8, "h": int16, "i": int32, "l": int64, "f": float32, "d": float64, "?": boolean}

FIRST: tuple[str, ...] = (
    "contract.reductions._largest_bits i1",
    "contract.reductions._round_rows f2 f f f2 l1 l1",
    "ops.sparse.kernels._forward l b5 l b4 l f1 ? l l f5 b5 f3 f1 l f2 l l",
    "ops.dense._convolve f4 f3 f4 l l l l l",
    "models.neurons._forward l f1 f2 l f2 b2 f3 f2 l ? ?",
    "ops.sparse.spikes.density b4 l l",
    "ops.avgpool2d.forward b4 f4 l l f",
    "ops.dense._product f2 f2 f2",
    "models.neurons._backward l f1 f2 f3 f2 l f2 f2 f2 l ? ?",
    "ops.dense._product_of_rows f2 f2 f2",
    "ops.sparse.kernels._backward l b5 l b4 l l l f5 f3 f5 l f5 f2 f1 l f2 f2 l l",
    "ops.dense._input_error f4 f3 f4 l l l l l l",
    "ops.dense._gradient f4 f4 f4 l l l l l",
    "ops.avgpool2d.backward f4 f4 l l f",
    "contract.reductions._squares f1 f",
    "contract.reductions._count b1",
    "models.optim.adamw._update l f1 f1 f1 f1 f1 f1 f1 f1 l",
    "equations.recurrence._recur l f1 l2 l2 ?1 l l l ?",
)
"""Kernels in the order in which a first training step with convolutions calls them.

Each line contains the module and the name of a kernel, and then the type of each argument. The number after the type of
an array is its number of axes.
"""

OTHERS: tuple[str, ...] = (
    "ops.sparse.integer_conv._forward l b5 l b4 l h1 f l l l l f5 b5 f3 f1 l f2 l l",
    "ops.sparse.linear._forward b2 f2 f2 l",
    "ops.sparse.linear._gradient b2 f2 f2 l",
    "ops.sparse.linear._exact_gradient b2 d2 d2 l",
    "ops.sparse.linear.turn f2 f2 l ? f",
    "ops.sparse.linear.turn d2 d2 l ? f",
    "ops.sparse.linear.turn f2 h2 l ? f",
    "models.populations._forward l f1 f3 f2 l1 l f2 l l f2 b2 f3 f2",
    "models.populations._backward l f1 f2 f3 f2 l f2 l l l l f3 f2 f2",
    "ops.conv2d_bytes.doubled b5 b4 l l b5",
    "ops.delay._shifted b3 i1 b3",
    "ops.delay._shifted f3 i1 f3",
    "ops.delay._terms b3 i1 f3 b2 d2",
    "ops.delay._terms f3 i1 f3 f2 d2",
    "ops.dropout._keep_mask l l l l l l b3",
    "ops.avgpool2d.forward f4 f4 l l f",
    "ops.maxpool2d.forward b4 b4 i4 l l",
    "ops.maxpool2d.forward f4 f4 i4 l l",
    "ops.maxpool2d.backward f4 i4 f4 l l",
    "ops.batchnorm._moments f2 f f l l3",
    "ops.batchnorm._error_moments f2 f2 f f l d3",
    "ops.dense._convolve b4 f3 f4 l l l l l",
    "ops.dense._product d2 d2 d2",
    "ops.dense._product_of_rows d2 d2 d2",
    "ops.dense._gradient b4 f4 f4 l l l l l",
    "ops.dense._gradient b4 d4 d4 l l l l l",
    "ops.dense._gradient f4 d4 d4 l l l l l",
    "ops.dense._input_error d4 d3 f4 l l l l l l",
    "ops.conv2d._unfold b4 f6 l l l l l l",
    "ops.conv2d._unfold f4 f6 l l l l l l",
    "ops.conv2d._unfold b4 d6 l l l l l l",
    "ops.conv2d._unfold f4 d6 l l l l l l",
    "ops.conv2d._add_windows f6 f4 l l l l l l",
    "ops.conv2d._add_windows d6 f4 l l l l l l",
    "models.optim.sgd._update l f1 f1 f1 f1 f1 f1 l",
    "contract.reductions._counts b3 i1",
    "contract.reductions._round_errors f1 f f f f1 l2",
)
"""Kernels that other networks and settings call, in the same format as `FIRST`."""


class Kernel(NamedTuple):
    """A kernel with the types of its arguments."""

    dispatcher: Any
    types: tuple[types.Type, ...]

    @property
    def file(self) -> str:
        """Name of the kernel's file in the folder of compiled kernels."""
        name: str = self.dispatcher._cache._file(self.types)
        return name


def kernel(description: str) -> Kernel:
    """The kernel that a line of `FIRST` or `OTHERS` describes."""
    name, *arguments = description.split()
    module, _, function = name.rpartition(".")
    return Kernel(getattr(import_module(f"stsbp_cpu.{module}"), function), tuple(map(_type, arguments)))


def _type(text: str) -> types.Type:
    dtype = _DTYPES[text[0]]
    return types.Array(dtype, int(text[1:]), "C") if len(text) > 1 else dtype


def fill() -> tuple[int, int]:
    """Compile all kernels, and the steps of the spec's neurons, losses and optimisers with their default settings.

    The work is divided among one process per processor. Returns the number of kernels that were missing before, and the
    number of all kernels.

    Raises:
        BackendError: the kernels cannot run with numba's settings.
    """
    check_settings()
    # The wheel has no compiled kernels, because they fit one type of processor and one version of numba and numpy.
    folder, kernels = own_folder(), [kernel(description) for description in FIRST + OTHERS]
    missing = [candidate for candidate in kernels if folder is None or folder.read(candidate.file) is None]
    shared = missing and folder is not None and folder.kept
    helpers = [_start(str(i), str(_cores())) for i in range(1, _cores())] if shared else []
    _compile(missing)
    for equations in (neuron_equations(PSP().filter(), model()) for model in NEURONS.values()):
        neurons.fire(equations.forward)
        neurons.propagate(equations.summing, len(equations.terms))
    step_of(COUNT)
    for loss in map(loss_equations, LOSSES.values()):
        if loss.forward is not None:
            step_of(loss.forward)
        step_of(loss.backward)
    one = np.float32(1)
    for optimizer in (AdamW(), Adam()):
        adamw.step_of_update(optimizer.scalars(0, one).update)
    sgd.step_of_update(SGD().scalars(0, one).update)
    for helper in helpers:
        helper.wait()
    return len(missing), len(kernels)


def prepare(*, dense: bool) -> None:
    """Announce when kernels are compiled, and start a second process that compiles kernels if the cache is empty.

    Backends call this function when they open the CPU. The environment variable `STSBP_COMPILE_BESIDE=0` prevents the
    second process.

    Args:
        dense: whether the backend also uses the kernels for dense convolutions and products.

    Raises:
        BackendError: the kernels cannot run with numba's settings.
    """
    check_settings()
    announce()
    if _helpers or _cores() < 2 or os.environ.get("STSBP_COMPILE_BESIDE") == "0":
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
    """Start a process that runs `main`."""
    # With -P, Python imports nothing from the user's working directory.
    command = [sys.executable, "-P", "-m", "stsbp_cpu.engine.precompile", str(os.getpid()), *share]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _compile(kernels: Iterable[Kernel], going_on: Callable[[], bool] = lambda: True) -> None:
    """Compile the missing kernels that no other process is compiling, until `going_on` returns false."""
    folder = own_folder()
    for candidate in kernels:
        if not going_on():
            return
        if folder is None or (folder.read(candidate.file) is None and folder.is_free(candidate.file)):
            candidate.dispatcher.compile(candidate.types)


def main(parent: str, *share: str) -> None:
    """Compile kernels for the process `parent` until that process ends.

    Args:
        parent: process ID.
        share: `dense` or `sparse` (from `prepare`): compile the kernels of `FIRST`, beginning with the last one, and
            with `sparse` leave out those of dense.py. Or two numbers (from `fill`), the number of a share and the
            number of shares: compile all kernels, beginning with that share.
    """

    def alive() -> bool:
        return os.getppid() == int(parent)

    if len(share) == 2:
        descriptions, (number, count) = FIRST + OTHERS, map(int, share)
        begin = number * len(descriptions) // count
        _compile(map(kernel, descriptions[begin:] + descriptions[:begin]), alive)
    elif (folder := own_folder()) is not None and (claim := folder.claim("helper")):
        # In reverse order, so that the two processes begin at opposite ends and rarely need the same kernel.
        descriptions = tuple(
            description
            for description in reversed(FIRST)
            if share == ("dense",) or not description.startswith("ops.dense.")
        )
        _compile(map(kernel, descriptions), alive)
        claim.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
