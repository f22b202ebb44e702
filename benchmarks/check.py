"""Regression guard: measure again and compare ratios, never seconds, with those in benchmarks/results/.

`python benchmarks/check.py [--backend torch] [--band 0.25]` (`nox -s bench_check`). A ratio may be worse than the
stored one by the share `--band`; what is worse on two measurements fails. The stored file must be of the same device;
versions may differ, and are named where something fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import HERE, parser_of

BAND = 0.25
"""Ratios of medians on a quiet machine repeat within a tenth; this leaves room for another machine of the same kind."""
RATIOS = {"lif forward": True, "lif backward": True, "training step": False, "10 updates, loader": False}
"""What is compared, and whether more is better."""


def ratios(report: dict[str, Any]) -> dict[tuple[str, str], float]:
    """Ratios of a report by what was measured and its case."""
    rows = [row for row in report["rows"] if row["what"] in RATIOS and row["ratio"] is not None]
    return {(row["what"], row["case"]): float(row["ratio"]) for row in rows}


def worse(stored: dict[str, Any], report: dict[str, Any], band: float) -> list[str]:
    """What got worse than the band allows, in words.

    Raises:
        ValueError: the reports have nothing in common.
    """
    former, now = ratios(stored), ratios(report)
    common = [key for key in former if key in now]
    if not common:
        raise ValueError("the stored report and the new one have no measurement in common; sizes differ?")
    lines = []
    for key in common:
        ratio, case = key
        loss = former[key] / now[key] - 1 if RATIOS[ratio] else now[key] / former[key] - 1
        if loss > band:
            was = f"{now[key]:.2f}, was {former[key]:.2f}"
            lines.append(f"{ratio}, {case}: {was} ({loss:.0%} worse, {band:.0%} allowed)")
    return lines


def measure(backend: str, device: str, settings: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    """A new report with the settings of the stored one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "stsbp", "--backend", backend, "--device", device, "benchmark"]
        command += [settings["group"], "--scale", str(settings["scale"]), "--rounds", str(settings["rounds"])]
        if settings.get("surrogate"):
            command += ["--surrogate", settings["surrogate"]]
        subprocess.run([*command, *arguments, "--json", str(path)], check=True)
        report: dict[str, Any] = json.loads(path.read_text())
        return report


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 where something got worse, 2 where nothing is stored to compare with."""
    parser = parser_of(__doc__, "backend", "device", device="cpu")
    parser.add_argument("--band", type=float, default=BAND, help="share by which a ratio may be worse")
    parser.add_argument("--stored", type=Path, help="report to compare with")
    options, arguments_of_stsbp = parser.parse_known_args(arguments)
    path = options.stored or HERE / "results" / f"{options.backend}-{options.device.replace(':', '')}.json"
    if not path.is_file():
        print(f"no stored results {path}; make them with: stsbp benchmark --json {path}", file=sys.stderr)
        return 2
    stored = json.loads(path.read_text())
    machine = stored["machine"]
    for attempt in range(2):
        report = measure(options.backend, options.device, machine["settings"], arguments_of_stsbp)
        lines = worse(stored, report, options.band)
        if not lines:
            print(f"no ratio is more than {options.band:.0%} worse than in {path.name} of {machine['date'][:10]}")
            return 0
        print("\n".join(lines), file=sys.stderr)
        if attempt == 0:
            print("measuring once more", file=sys.stderr)
    if machine["processor"] != report["machine"]["processor"]:
        print(f"stored on {machine['processor']}, measured on {report['machine']['processor']}", file=sys.stderr)
    changed = {name: v for name, v in report["machine"]["versions"].items() if machine["versions"].get(name) != v}
    if changed:
        print(f"versions that changed: {changed}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
