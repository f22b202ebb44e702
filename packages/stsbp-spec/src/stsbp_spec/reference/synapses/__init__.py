"""Reference pairs of stsbp_spec.synapses."""
