"""JAX form of stsbp_spec.optim."""
