"""JAX pairs of stsbp_spec.models.neurons."""
