"""Launchers of stsbp_spec.synapses."""
