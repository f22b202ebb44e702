"""The training loop, its checkpoints and its records. They are the same for all backends."""
