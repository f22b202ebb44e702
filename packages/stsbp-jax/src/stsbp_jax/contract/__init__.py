"""The contract's arithmetic inside a `jit`."""
