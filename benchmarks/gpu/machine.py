"""What the machine is: `python machine.py FILE.json`; every backend's devices, why one cannot run, a GPU's speeds.

Speeds are those of a copy and of products of large matrices, by torch, each the best of some. What expected.py assumes
of them stands beside.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import expected  # noqa: E402
from stsbp.benchmarks.device import describe  # noqa: E402
from stsbp_spec.errors import BackendError  # noqa: E402
from stsbp_spec.registry import installed_backends, load_backend, open_backend  # noqa: E402


def ceilings(gpu: expected.Gpu, device: str = "cuda", size: int = 8192) -> dict[str, Any]:
    """Measured and assumed speeds of torch's `device`: bytes and operations a second."""
    import torch

    def best(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(6):
            began = time.perf_counter()
            for _ in range(3):
                run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - began) / 3)
        return min(seconds)

    source = torch.rand(4 * size * size, device=device)
    target = torch.empty_like(source)
    speeds = {"copy": {"measured": 8 * source.numel() / best(lambda: target.copy_(source)), "assumed": gpu.copy}}
    units: tuple[tuple[expected.Unit, torch.dtype], ...] = (
        ("float32", torch.float32),
        ("half", torch.float16),
        ("float64", torch.float64),
    )
    for unit, dtype in units:
        a, b = (torch.rand((size, size), device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        speed = 2 * size**3 / best(lambda a=a, b=b, out=out: torch.matmul(a, b, out=out))  # type: ignore[misc]
        speeds[unit] = {"measured": speed, "assumed": gpu.rate(unit)}
    return speeds


def main(path: str) -> None:
    """Write and print it."""
    machine = describe(open_backend("numpy"), {})
    report: dict[str, Any] = {"machine": machine, "cores": os.cpu_count(), "backends": {}, "notes": {}}
    for name in installed_backends():
        try:
            kind = load_backend(name)
            report["backends"][name] = [device._asdict() for device in kind.devices()]
            if name == "cupy" and report["backends"][name][0]["problem"] is None:
                report["notes"][name] = getattr(open_backend(name), "notes", ())
        except BackendError as error:
            report["backends"][name] = str(error)
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
        report["gpu"] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        gpu = expected.GPUS["h200" if "H200" in report["gpu"] else "h100"]
        devices = report["backends"].get("torch", [])
        if any(entry["name"] == "cuda:0" for entry in devices if isinstance(entry, dict)):
            report["ceilings"] = ceilings(gpu)
    text = json.dumps(report, indent=1)
    Path(path).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1])
