"""Fused CPU kernels (numba) for stsbp's equations.

The kernels work on numpy arrays, so any backend whose arrays are in the CPU's memory can use them. The equations are
defined in `stsbp_spec` and printed as code for numba. All arrays are contiguous. Arrays with channels are channels
last, `[T, B, H, W, C]`. Arrays of neurons have one row for each step, `[T, M]`, with all neurons of the step in memory
order. The caller allocates the arrays for the results. The kernels do not copy or change their inputs, and they keep
no reference to them.
"""

import os
from contextlib import suppress
from importlib.metadata import version

from stsbp_spec.errors import BackendError

__version__ = version("stsbp-cpu")

__all__ = ["__version__"]

with suppress(ValueError):  # numba warns of text that is no number, and ignores it
    if int(os.environ.get("NUMBA_NUM_THREADS", "")) < 1:
        # numba, which every module imports, could not be imported.
        raise BackendError(
            f"the environment variable NUMBA_NUM_THREADS={os.environ['NUMBA_NUM_THREADS']} is the number of threads of "
            "the kernels; set it to at least 1, or unset it, before Python starts"
        )
