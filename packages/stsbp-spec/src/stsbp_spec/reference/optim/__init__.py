"""Reference pairs of stsbp_spec.optim."""
