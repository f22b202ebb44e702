"""The energy of a run: counted operations (stsbp_spec.engine.cost) times the energy of each (docs/energy.md)."""
