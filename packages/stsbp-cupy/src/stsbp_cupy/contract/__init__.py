"""The contract's arithmetic in CUDA kernels."""
