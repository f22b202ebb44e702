"""JAX pairs of stsbp_spec.networks.ops. Images are channels last, `[T, B, H, W, C]`. Weights have the spec's shapes."""
