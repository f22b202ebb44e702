"""A worked example of a third party's backend for stsbp: sums by `numpy.einsum`. See docs/write_a_backend.md."""
