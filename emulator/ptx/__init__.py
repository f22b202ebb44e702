"""An interpreter of PTX, NVIDIA's portable machine code, on numpy arrays: README.md of the folder above."""
