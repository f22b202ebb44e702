"""Fused CPU kernels (numba) for stsbp's equations.

The kernels work on numpy arrays, so any backend whose arrays are in the CPU's memory can use them. The equations are
defined in `stsbp_spec` and printed as code for numba. All arrays are contiguous. Arrays with channels are channels
last, `[T, B, H, W, C]`. Arrays of neurons have one row for each step, `[T, M]`, with all neurons of the step in memory
order. The caller allocates the arrays for the results. The kernels do not copy or change their inputs, and they keep
no reference to them.
"""

from importlib.metadata import version

__version__ = version("stsbp-cpu")

__all__ = ["__version__"]
