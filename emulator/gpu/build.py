"""Builds what CuPy needs to run on the emulated GPU: `python -m emulator.gpu.build FOLDER`.

CuPy's wheel links NVIDIA's runtime library statically in one module, `cupy_backends.cuda.api.runtime`. This module is
built again from CuPy's own source, against a library that has every function which CuPy calls; all other modules are
those of the wheel. Each function of the library hands its name and its arguments, as 64-bit integers, to one Python
function (`device.py`). The versions are those of `REQUIREMENTS`, since the source must be that of the installed wheel.

The script needs a C++ compiler, `nm`, and a network for CuPy's source (2 MB). FOLDER receives:

    lib/    libemulated.so, and links to it with the names libcuda.so.1, libcublas.so.12 and libcublasLt.so.12
    site/   a copy of the wheel's package cupy_backends with the module that was built again
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["REQUIREMENTS", "build", "environment"]

CUPY = "14.2.0"
REQUIREMENTS = (
    f"cupy-cuda12x=={CUPY}",
    "Cython==3.2.4",
    "setuptools>=77",
    "nvidia-cuda-nvrtc-cu12==12.9.86",
    "nvidia-cuda-nvcc-cu12==12.9.86",
    "nvidia-cuda-runtime-cu12==12.9.79",
)
"""Packages of the environment in which the script and CuPy run."""

_DRIVER = [
    "cuGetErrorName", "cuGetErrorString", "cuDevicePrimaryCtxRelease_v2", "cuCtxGetCurrent", "cuCtxSetCurrent",
    "cuCtxCreate_v2", "cuCtxDestroy_v2", "cuCtxGetDevice", "cuLinkCreate_v2", "cuLinkAddData_v2", "cuLinkAddFile_v2",
    "cuLinkComplete", "cuLinkDestroy", "cuModuleLoad", "cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction",
    "cuModuleGetGlobal_v2", "cuLaunchKernel", "cuLaunchCooperativeKernel", "cuFuncGetAttribute", "cuFuncSetAttribute",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor", "cuOccupancyMaxPotentialBlockSize", "cuStreamGetCtx", "cuInit",
    "cuDriverGetVersion", "cublasSetWorkspace_v2",
]  # fmt: skip
_ALIASES = ("libcuda.so.1", "libcublas.so.12", "libcublasLt.so.12")
_PROFILER = """#include "driver_types.h"
extern "C" {
cudaError_t cudaProfilerInitialize(const char*, const char*, int);
cudaError_t cudaProfilerStart(void);
cudaError_t cudaProfilerStop(void);
}
"""
_CYTHONISE = """
from Cython.Build import cythonize
from setuptools import Extension
extension = Extension("cupy_backends.cuda.api.runtime", ["cupy_backends/cuda/api/runtime.pyx"], language="c++")
directives = {"embedsignature": True, "binding": False, "warn.deprecated.IF": False, "freethreading_compatible": True}
names = {"CUPY_USE_CUDA_PYTHON": False, "CUPY_CUFFT_STATIC": False, "CUPY_CYTHON_VERSION": "3.2.4",
         "CUPY_CUDA_VERSION": 12090, "CUPY_HIP_VERSION": 0}
cythonize([extension], language_level=3, force=True, compiler_directives=directives, compile_time_env=names)
"""


def build(folder: Path) -> None:
    """Build everything into a folder. What is there already stays."""
    site = folder / "site" / "cupy_backends"
    if not site.is_dir():
        wheel = _package("cupy_backends")
        with TemporaryDirectory() as scratch:
            module = _runtime(Path(scratch))
            library(module, wheel, folder / "lib")
            partial = folder / "site" / "partial"
            shutil.copytree(wheel, partial)
            (old,) = (partial / "cuda" / "api").glob("runtime.*.so")
            shutil.copy(module, old)
            partial.rename(site)


def environment(folder: Path) -> dict[str, str]:
    """Variables for a process whose CuPy is to use the emulated GPU."""
    search = os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH", ""))))
    return {
        "LD_LIBRARY_PATH": str(folder / "lib"),
        "LD_PRELOAD": str(folder / "lib" / "libemulated.so"),
        "PYTHONPATH": search,
        "CUPY_CACHE_DIR": str(folder / "cache"),
        "CUPY_COMPILE_WITH_PTX": "1",  # the emulated GPU reads no machine code
        "CUPY_ACCELERATORS": "",  # the kernels of cub are machine code
    }


def library(module: Path, wheel: Path, folder: Path) -> None:
    """Build the library with every function that the modules of CuPy ask for."""
    cublas = next((wheel / "cuda" / "libs").glob("cublas.*.so"))
    names = sorted({*_undefined(module, "cuda"), *_undefined(cublas, "cublas"), *_DRIVER})
    parameters = ", ".join(f"long a{i}" for i in range(20))
    values = ", ".join(f"a{i}" for i in range(20))
    text = """
static long (*handler)(const char*, long*);
void emulated_set(long (*f)(const char*, long*)) { handler = f; }
static long call(const char* name, long* a) { return handler ? handler(name, a) : 0; }
"""
    for name in names:
        text += f'long {name}({parameters}) {{ long a[20] = {{{values}}}; return call("{name}", a); }}\n'
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "libemulated.so"
    command = ["gcc", "-O0", "-w", "-shared", "-fPIC", "-x", "c", "-", "-o", str(output), f"-Wl,-soname,{output.name}"]
    subprocess.run(command, input=text, text=True, check=True)
    for alias in _ALIASES:
        (folder / alias).unlink(missing_ok=True)
        (folder / alias).symlink_to(output.name)


def _runtime(scratch: Path) -> Path:
    """CuPy's module of the CUDA runtime, which leaves the functions of the runtime to a shared library."""
    # pip would compile the source to read its metadata; this variable of CuPy's build leaves CUDA out.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--no-build-isolation"]
    command += ["-d", str(scratch), f"cupy=={CUPY}"]
    subprocess.run(command, env={**os.environ, "READTHEDOCS": "True"}, check=True)
    with tarfile.open(next(scratch.glob("cupy-*.tar.gz"))) as archive:
        archive.extractall(scratch, filter="data")
    source = next(path for path in scratch.glob("cupy-*") if path.is_dir())
    subprocess.run([sys.executable, "-c", _CYTHONISE], cwd=source, check=True)
    (scratch / "include").mkdir()
    (scratch / "include" / "cuda_profiler_api.h").write_text(_PROFILER)
    nvidia = _package("nvidia")
    headers = (scratch / "include", nvidia / "cuda_runtime" / "include", nvidia / "cuda_nvcc" / "include")
    includes = ("cupy_backends", sysconfig.get_path("include"), *map(str, headers))
    output = scratch / "runtime.so"
    subprocess.run(
        ["g++", "-O1", "-w", "-fPIC", "-shared", "-D_FORCE_INLINES=1", '-DCYTHON_EXTERN_C=extern "C"',
         *(f"-I{path}" for path in includes), "cupy_backends/cuda/api/runtime.cpp", "-o", str(output)],
        cwd=source, check=True,
    )  # fmt: skip
    return output


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed; install {' '.join(REQUIREMENTS)}")
    return Path(next(iter(spec.submodule_search_locations)))


def _undefined(path: Path, prefix: str) -> set[str]:
    text = subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True, check=True).stdout
    return set(re.findall(rf" U ({prefix}\w+)", text))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    build(Path(sys.argv[1]).resolve())
