"""The devices `cuda` and `host`: compilation, launches, CUDA graphs."""
