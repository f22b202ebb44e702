"""Reference pairs of stsbp_spec.losses."""
