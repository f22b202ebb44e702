"""Fused CPU kernels of stsbp's equations (numba), over numpy arrays, for any backend with arrays in the CPU's memory.

The equations are those of `stsbp_spec`, printed for numba. Arrays with channels lie channels last, `[T, B, H, W, C]`;
those of neurons are rows of them, `[T, M]`, all neurons of a step in the order of memory. All are contiguous. Results
go into arrays that the caller has made, so nothing is copied, and nothing that is read is changed or kept.
"""

from importlib.metadata import version

__version__ = version("stsbp-cpu")

__all__ = ["__version__"]
