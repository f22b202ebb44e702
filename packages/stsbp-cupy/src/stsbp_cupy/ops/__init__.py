"""Launchers of stsbp_spec.networks.ops."""
