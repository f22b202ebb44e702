"""Print every fault, and how many checks of each tier detect it. If a file is named, write them as JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from stsbp_conformance.faults import FAULTS, caught, quick_checks

_FASTEST = (5, 7, 1, 2, 6, 8, 4, 3)
"""All tiers, the fastest first."""


def main() -> None:
    """The command."""
    table = []
    for fault in FAULTS:
        failed = caught(fault.backend())
        tiers = {tier: len(ids) for tier, ids in failed.items()}
        first = next((failed[tier][0] for tier in _FASTEST if tier in failed), None)
        table.append({"fault": fault.name, "description": fault.description, "first": first, "caught": tiers})
        print(f"{fault.name:24} {', '.join(f'tier {t}: {n}' for t, n in tiers.items()) or 'NOT CAUGHT'}", flush=True)
    if len(sys.argv) > 1:
        totals = Counter(check.tier for check in quick_checks())
        Path(sys.argv[1]).write_text(json.dumps({"checks": totals, "faults": table}, indent=1) + "\n", encoding="utf-8")
    if not all(row["caught"] for row in table):
        raise SystemExit("a fault was not caught")


if __name__ == "__main__":
    main()
