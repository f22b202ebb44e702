"""The reference: float32 in the order of the spec, the `numpy` backend."""
