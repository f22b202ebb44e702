"""JAX pairs of stsbp_spec.neurons."""
