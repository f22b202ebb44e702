"""The CuPy backend of stsbp. The spec's pairs are CUDA kernels (kernels/*.cu), called through thin launchers.

On a GPU, NVRTC compiles the kernels and CuPy launches them. On the device `host`, a C++ compiler builds the same files,
and numpy takes the place of CuPy. Importing this package imports neither CuPy nor a compiler.
"""

from importlib.metadata import version

from stsbp_cupy.backend import CupyBackend

__version__ = version("stsbp-cupy")

__all__ = ["CupyBackend"]
