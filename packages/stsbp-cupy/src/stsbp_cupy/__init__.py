"""The CuPy backend of stsbp: the spec's pairs as raw CUDA kernels (kernels/*.cu) behind thin launchers.

On a GPU the kernels are compiled by NVRTC and launched by CuPy; on the device `host` a C++ compiler builds the same
files and numpy stands in CuPy's place. Importing this package imports neither CuPy nor a compiler.
"""

from importlib.metadata import version

from stsbp_cupy.backend import CupyBackend

__version__ = version("stsbp-cupy")

__all__ = ["CupyBackend"]
