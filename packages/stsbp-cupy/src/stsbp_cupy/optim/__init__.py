"""Launchers of stsbp_spec.optim."""
