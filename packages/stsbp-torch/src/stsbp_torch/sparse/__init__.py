"""Blocks by the sparse kernels of stsbp_cpu, where they are faster than the dense path."""
