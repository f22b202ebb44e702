"""Reference pairs of stsbp_spec.neurons."""
