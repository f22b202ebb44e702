"""A trained network as C99: a header and a source file, without memory allocation, with the same spikes as stsbp.

Weighted sums are sums of integers below `2^24`, and therefore exact. All further steps are the equations of the spec,
as printed for C (the spec's equations/printers.py), with one float32 operation for each operation. texts.py has pieces
of the language, arrays.py the memory layout, kernels.py weights and pooling, and steps.py neurons. module.py combines
them to a network, and files.py makes the two files.
"""

from __future__ import annotations

from stsbp.interop.c_source.files import CSource, source, write

__all__ = ["CSource", "source", "write"]
