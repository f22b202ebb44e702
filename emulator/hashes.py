"""The stored hashes on the CUDA kernels as PTX: `python -m emulator.hashes [sm_75 sm_80 sm_90] [--full]`.

The cases are computed with NVRTC's PTX for each architecture in the interpreter, and their SHA-256 compared with those
of `hashes.json`, which every backend reproduces. Without `--full` these are the quick cases.
"""

from __future__ import annotations

import sys

from stsbp_conformance.hashes import main as compare

from emulator.cupy_kernels import PtxRuntime, install

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")


def main(arguments: list[str]) -> int:
    """Compare on each architecture; 0: all hashes are the stored ones."""
    names = [x for x in arguments if not x.startswith("-")] or ARCHITECTURES
    install()
    failed = 0
    for architecture in names:
        PtxRuntime.architecture = architecture
        PtxRuntime.launches.clear()
        status = compare(["cupy=host", *([] if "--full" in arguments else ["--quick"])])
        print(f"{architecture}: {'different' if status else 'equal'}, {PtxRuntime.launches.total()} launches")
        failed += bool(status)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
