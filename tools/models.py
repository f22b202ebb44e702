"""Write the networks of the package stsbp-models from runs, and the table of docs/models.md.

    python tools/models.py RUNS [NAME...]    RUNS/NAME is the run of the model NAME; then write the table
    python tools/models.py                   only write the table

The model card of each network has the command that trains it. Names are those of data sets.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stsbp.hub.card import result_text
from stsbp.hub.folder import write_folder
from stsbp.hub.network import CONFIG, read_record
from stsbp.training.metrics import read_records
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained
from stsbp_spec.reference.backend import NumpyBackend

__all__ = ["main", "table", "with_table", "write"]

ROOT = Path(__file__).parents[1]
FOLDERS = ROOT / "packages/stsbp-models/src/stsbp_models"
PAGE = ROOT / "docs/models.md"
LICENCE = "apache-2.0"
REMARKS = {
    "nmnist": "They are the recordings 1 to 1,000 of the training samples of N-MNIST, of which `stsbp` holds out 100 "
    "to test on. With all recordings, the command gives other weights.",
    "fsdd": "They are the recordings 2 to 49 of each digit and speaker, of which those below 5 are for testing. With "
    "all recordings from 0 to 49, the command gives other weights.",
}
"""What the cards say about data of which the training had only a part."""
BEGIN, END = "<!-- table of tools/models.py -->\n", "<!-- end of the table -->\n"


def write(run: Path, folder: Path) -> list[str]:
    """Write the network of a run as the folder of a model. Returns the messages to print."""
    trained = load_trained(RunFolder(run), "last", NumpyBackend())
    metrics = read_records(run, trained.settings)
    return write_folder(
        trained,
        folder,
        folder.name,
        metrics,
        license=LICENCE,
        packed=True,
        reference=f"model:{folder.name}",
        remark=REMARKS.get(folder.name, ""),
    )


def table(folders: Path = FOLDERS) -> str:
    """The table of all models in Markdown."""
    lines = ["| Model | Network | Test | Bytes | SHA-256 of the weights |", "|---|---|---|---|---|"]
    for config in sorted(folders.glob(f"*/{CONFIG}")):
        record, file = read_record(config, config.parent.name)
        test = result_text(record.tested)
        size = f"{(config.parent / file).stat().st_size:,}"
        lines.append(f"| `{config.parent.name}` | `{record.settings['net']}` | {test} | {size} | `{record.sha256}` |")
    return "\n".join(lines) + "\n"


def with_table(page: str, models: str) -> str:
    """The page with another table."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + models + END + rest.partition(END)[2]


def main() -> None:
    """Write the models that the command line names."""
    if len(sys.argv) > 1:
        runs = Path(sys.argv[1])
        for name in sys.argv[2:] or sorted(path.parent.name for path in runs.glob("*/config.toml")):
            print("\n".join(write(runs / name, FOLDERS / name)))
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, table()), encoding="utf-8")


if __name__ == "__main__":
    main()
