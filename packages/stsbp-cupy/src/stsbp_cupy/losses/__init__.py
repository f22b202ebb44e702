"""Launchers of stsbp_spec.losses."""
