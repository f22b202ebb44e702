"""The training loop, its checkpoints and its records; the same for every backend."""
