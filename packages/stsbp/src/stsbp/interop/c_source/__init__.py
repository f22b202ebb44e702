"""A trained network as C99: one header and one source file, without allocation, with the spikes of stsbp to the bit.

Sums of weights are sums of integers, below `2^24` of them, and so exact; what follows is the equations of the spec, as
they are printed for C (stsbp_spec/printers.py), each operation one of float32. texts.py has pieces of the language,
arrays.py the layout of memory, kernels.py weights and pooling, steps.py neurons, module.py puts a network together, and
files.py makes the two files of it.
"""

from __future__ import annotations

from stsbp.interop.c_source.files import Source, source, write

__all__ = ["Source", "source", "write"]
