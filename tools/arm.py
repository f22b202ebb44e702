"""Run this checkout on a 64-bit Arm processor, by emulation: `tools/arm.py [OPTIONS] [-- PYTHON'S ARGUMENTS]`.

    python tools/arm.py                                                   the quick cases of the stored hashes
    python tools/arm.py -- -m stsbp_conformance.hashes numpy torch=cpu    anything else
    python tools/arm.py --cpu neoverse-n1 -- -m pytest conformance/tests/test_suite.py --conformance-quick

The first call makes a folder (`--home`, build/arm) with all that it needs, and installs nothing on this machine: an
aarch64 Python from Debian's packages, wheels from PyPI (2 GB), and a copy of this checkout's packages, made anew by
every call. PyTorch's aarch64 wheel is linked against CUDA. Of CUDA only the runtime is taken, which finds no GPU; the
gigabytes of libraries that nobody calls without one are a library of empty functions in their place.

Needs Debian, and there `apt-get install qemu-user g++-aarch64-linux-gnu`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution
from pathlib import Path

__all__ = ["QUICK", "environment", "main", "missing", "required_packages"]

ROOT = Path(__file__).parents[1]
FOLDERS = (*sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml")), ROOT / "conformance")
QUICK = ("-m", "stsbp_conformance.hashes", "numpy", "torch=cpu", "torch=cpu:eager", "cupy=host", "--quick")
COMPILER = "aarch64-linux-gnu-g++"
TOOLS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "qemu-aarch64": "qemu-user",
    COMPILER: "g++-aarch64-linux-gnu",
    "aarch64-linux-gnu-nm": "binutils-aarch64-linux-gnu",
    "aarch64-linux-gnu-readelf": "binutils-aarch64-linux-gnu",
}
DEBIAN = ("python3", "libstdc++6", "libgomp1")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
LIBRARIES = "usr/lib/aarch64-linux-gnu"
_DONE = "complete\n"
_OURS, _GPU = re.compile(r"stsbp\b"), re.compile(r"(cuda|nvidia|triton)\b")
_FOREIGN = re.compile(r"OPENBLAS_|PYTHON|LD_|VIRTUAL_ENV|QEMU_")
"""Variables that speak of this machine's processor and Python."""


def missing() -> list[str]:
    """Debian packages of tools that are not there."""
    return sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})


def required_packages() -> list[str]:
    """What this project's packages require, without each other and without PyTorch."""
    names = {"pytest", "hypothesis"}
    for folder in FOLDERS:
        with open(folder / "pyproject.toml", "rb") as file:
            names |= set(tomllib.load(file)["project"]["dependencies"])
    return sorted(x for x in names if not _OURS.match(x) and not re.match(r"torch\b", x))


def environment(home: Path) -> dict[str, str]:
    """Variables for the emulated Python."""
    inherited = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    variables = {"PYTHONPATH": f"{home / 'own'}:{home / 'site'}", "PYTHONPYCACHEPREFIX": str(home / "pyc"),
           "XDG_CACHE_HOME": str(home / "cache"), "CXX": str(shutil.which(COMPILER))}  # fmt: skip
    return inherited | {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"} | variables


def _run(*command: str | Path, **env: str) -> str:
    process = subprocess.run([*map(str, command)], env=os.environ | env, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{process.stdout}{process.stderr}")
    return process.stdout


def _unpack_python(home: Path) -> None:
    """Debian's aarch64 Python in `home/root`, by an apt that knows of no other machine."""
    apt, root = home / "apt", home / "root"
    for folder in (apt / "state/lists/partial", apt / "cache/archives/partial", root / "usr/lib", root / "usr/bin"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("lib", "bin"):
        (root / name).symlink_to(f"usr/{name}")
    (apt / "status").touch()
    settings = {"APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Install-Recommends": "false",
                "APT::Sandbox::User": "root", "Dir::State": apt / "state", "Dir::State::status": apt / "status",
                "Dir::Cache": apt / "cache"}  # fmt: skip
    config = apt / "apt.conf"
    config.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    _run("apt-get", "-qq", "update", APT_CONFIG=str(config))
    _run("apt-get", "-qq", "--yes", "--download-only", "install", *DEBIAN, APT_CONFIG=str(config))
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        _run("dpkg-deb", "--extract", package, root)


def _version(home: Path) -> str:
    return os.readlink(home / "root/usr/bin/python3").removeprefix("python")


def _pip(home: Path, folder: str, *arguments: str | Path) -> None:
    # The one that looks for a newer pip and a virtual environment has no say in a folder.
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--target", home / folder, *arguments, **quiet)


def _wheels(home: Path, *requirements: str, alone: bool = False) -> None:
    platforms = [f"--platform={name}" for name in PLATFORMS]
    options = (*platforms, f"--python-version={_version(home)}", "--only-binary=:all:", *["--no-deps"] * alone)
    _pip(home, "site", *options, *requirements)


def _install_torch(home: Path) -> None:
    _wheels(home, "torch", alone=True)
    required = Distribution.at(next((home / "site").glob("torch-*.dist-info"))).requires or []
    _wheels(home, *(x for x in required if not _GPU.match(x) and "extra ==" not in x))
    if toolkit := next((x for x in required if x.startswith("cuda-toolkit")), None):
        version = re.search(r"==(\d+\.\d+)", toolkit)
        if version is None:
            raise SystemExit(f"PyTorch asks for another CUDA than this script knows: {toolkit}")
        _wheels(home, f"nvidia-cuda-runtime=={version[1]}.*", alone=True)
        _replace_cuda(home)


def _replace_cuda(home: Path) -> None:
    """CUDA's runtime where the linker finds it, and one library of empty functions under the names of all others."""
    system = home / "root" / LIBRARIES
    for runtime in (home / "site/nvidia").rglob("libcudart.so.*"):
        (system / runtime.name).symlink_to(runtime)
    torch = sorted((home / "site/torch/lib").glob("*.so*"))
    libraries = [*torch, *system.glob("libcudart.so.*")]
    functions = {x for x in _symbols(torch, "--undefined-only") if re.match(r"cu|nccl|nv", x)}
    functions -= _symbols(libraries, "--defined-only")
    source = "".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in sorted(functions))
    empty = system / "libstsbp-no-cuda.so"
    flags = ("-shared", "-fPIC", "-nostdlib", "-w", "-x", "c")
    (home / "no_cuda.c").write_text(source)
    _run(COMPILER, *flags, home / "no_cuda.c", "-o", empty)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", _run("aarch64-linux-gnu-readelf", "-d", *torch))
    for name in set(needed) - {path.name for path in torch}:
        if not (system / name).exists():
            (system / name).symlink_to(empty.name)


def _symbols(libraries: Iterable[Path], kind: str) -> set[str]:
    lines = _run("aarch64-linux-gnu-nm", "-D", kind, *libraries).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines if line.startswith((" ", "0"))}


def _launcher(home: Path, cpu: str) -> Path:
    """A script beside the emulated Python, which finds its own library from there and starts others by it."""
    binaries = home / "root/usr/bin"
    script = binaries / f"python-{cpu}"
    words = ("exec", "qemu-aarch64", "-cpu", cpu, "-L", home / "root", "-0", script, binaries / "python3")
    command = shlex.join(map(str, words)) + ' "$@"'
    script.write_text(f"#!/bin/sh\n{command}\n")
    script.chmod(0o755)
    return script


def _prepare(home: Path) -> None:
    mark = home / "stsbp-arm"
    if home.exists() and not mark.exists() and any(home.iterdir()):
        raise SystemExit(f"{home} holds something else; name another folder with --home")
    if not mark.exists() or mark.read_text() != _DONE:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        mark.touch()
        _unpack_python(home)
        _wheels(home, *required_packages())
        _install_torch(home)
        mark.write_text(_DONE)
    shutil.rmtree(home / "own", ignore_errors=True)
    _pip(home, "own", "--no-deps", *FOLDERS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folder where it is missing, and run Python in it; returns Python's exit code."""
    parser = argparse.ArgumentParser(description="Run this checkout on an emulated Arm processor.")
    parser.add_argument("--home", type=Path, default=ROOT / "build" / "arm", help="default: build/arm")
    parser.add_argument("--cpu", default="max", help="one of `qemu-aarch64 -cpu help`; default: max, all it knows")
    parser.add_argument("python", nargs="*", metavar="-- PYTHON'S ARGUMENTS", help=f"default: {' '.join(QUICK)}")
    options = parser.parse_args(arguments)
    if packages := missing():
        raise SystemExit(f"first, on Debian: apt-get install {' '.join(packages)}")
    home = options.home.resolve()
    _prepare(home)
    script = _launcher(home, options.cpu)
    return subprocess.run([script, *(options.python or QUICK)], env=environment(home), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
