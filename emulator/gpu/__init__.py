"""A GPU behind the functions of the CUDA runtime, driver and cuBLAS that CuPy calls: README.md one folder up."""
