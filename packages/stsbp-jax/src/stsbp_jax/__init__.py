"""JAX backend of stsbp."""
