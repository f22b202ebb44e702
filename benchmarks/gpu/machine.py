"""What the machine is: `python machine.py FILE.json`; every backend's devices, and why one cannot run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from stsbp.benchmarks.device import describe
from stsbp_spec.errors import BackendError
from stsbp_spec.registry import installed_backends, load_backend, open_backend

__all__ = ["main"]


def main(path: str) -> None:
    """Write and print it."""
    found: dict[str, Any] = {"machine": describe(open_backend("numpy"), {}), "backends": {}}
    for name in installed_backends():
        try:
            found["backends"][name] = [device._asdict() for device in load_backend(name).devices()]
        except BackendError as error:
            found["backends"][name] = str(error)
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    text = json.dumps(found, indent=1)
    Path(path).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1])
