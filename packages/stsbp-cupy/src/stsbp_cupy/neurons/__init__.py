"""Launchers of stsbp_spec.neurons."""
