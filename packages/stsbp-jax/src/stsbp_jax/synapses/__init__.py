"""JAX pairs of stsbp_spec.synapses; images are channels-last here, `[T, B, H, W, C]`, weights keep the spec's shape."""
