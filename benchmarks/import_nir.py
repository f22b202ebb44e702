"""Networks that other libraries export, imported: `python benchmarks/import_nir.py FOLDER --peer NAME=PYTHON ...`.

Each peer, in an environment of its own (PYTHON), writes small networks with its own exporter and records what they do
(import_nir_peer.py). Each file is imported as a run whose data set are these recordings, inputs and output spikes, is
compared with them, and is trained for an epoch. Printed: a row a network. `--paper REPOSITORY`, a checkout of
github.com/neuromorphs/NIR, takes the paper's LIF neuron and the traces of it that simulators recorded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import HERE, guarded, parser_of, table
from stsbp import load_run
from stsbp.datasets.npz import read_arrays

ABOVE = "--threshold-above"
HOW: dict[str, tuple[str, ...]] = {
    "spikingjelly LIFNode": ("--dt", "1e-4"),
    "spikingjelly LIFNode, decay_input, bias": ("--dt", "1e-4"),
    "spikingjelly CUBALIFNode": ("--dt", "1e-4"),
    "norse LIFBoxCell": ("--dt", "1e-3", ABOVE),
    "norse LIFCell": ("--dt", "1e-3", ABOVE),
    "snntorch Leaky": ("--dt", "1e-4", ABOVE),
    "snntorch Synaptic": ("--dt", "1e-4", ABOVE),
    "snntorch RLeaky": ("--dt", "1e-4", ABOVE),
    "snntorch Leaky, its own reset": ("--dt", "1e-4", ABOVE, "--reset", "subtract"),
}
"""Options of `stsbp import`, by the name of the network."""


def stsbp(*arguments: str | Path) -> str:
    """The command line on the numpy backend; what it prints."""
    command = [sys.executable, "-m", "stsbp", "--backend", "numpy", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def row(folder: Path, name: str) -> tuple[object, ...]:
    """A network imported, compared and trained."""
    file, data, run = folder / f"{name}.nir", folder / f"{name}.npz", folder / f"{name} run"
    arrays = read_arrays(data)
    steps = str(arrays["inputs"].shape[1])
    settings = ("--steps", steps, "--epochs", "1", "--batch-size", "5", "--holdout", "5")
    output = stsbp("import", file, "--dataset", f"sequences:{data}", "--out", run, *HOW[name], *settings)
    spikes = load_run(run, backend="numpy").predict(arrays["inputs"].transpose(1, 0, 2)).spikes.transpose(1, 0, 2)
    differ, target_count = int((spikes != arrays["targets"]).sum()), int(arrays["targets"].sum())
    loss_before, _, loss_after = (
        stsbp("evaluate", run, "--json", "--tolerance", "0", "--split", "train"),
        stsbp("train", "--resume", run),
        stsbp("evaluate", run, "--json", "--tolerance", "0", "--split", "train"),
    )
    figures = [f"{json.loads(report)['loss']:.4f}" for report in (loss_before, loss_after)]
    grid = "no" if "lie on the grid" in output else "yes"
    return name, " ".join(HOW[name]), f"{differ} of {spikes.size:,}", f"{target_count:,}", grid, *figures


def paper(folder: Path, repository: Path) -> Iterator[str]:
    """The paper's LIF neuron, `paper/01_lif/lif_norse.nir`, on its own input, beside the traces of simulators."""
    lif = repository / "paper" / "01_lif"
    traces = {path.stem.removeprefix("lif_"): np.loadtxt(path, delimiter=",") for path in sorted(lif.glob("lif_*.csv"))}
    inputs = (traces["norse"][:, :1] > 0).astype(np.uint8)
    spikes = (traces["exact"][:, 2:] > 0).astype(np.uint8)
    data = folder / "paper.npz"
    np.savez(data, inputs=np.stack([inputs] * 2), targets=np.stack([spikes] * 2))
    for reset in ("zero", "subtract"):
        run = folder / f"paper, {reset}"
        settings = ("--dt", "1e-4", "--reset", reset, "--steps", str(len(inputs)), "--epochs", "1", "--holdout", "1")
        stsbp("import", lif / "lif_norse.nir", "--dataset", f"sequences:{data}", "--out", run, *settings)
        trained = load_run(run, backend="numpy")
        (layer,) = trained.backend.run(trained.network, trained.weights, inputs[:, None], len(inputs)).layers.values()
        fired, u = layer.spikes.reshape(-1) > 0, layer.potentials.reshape(-1)
        after_reset = np.where(fired, 0 if reset == "zero" else u - trained.network.blocks[0].neuron.threshold, u)
        yield f"stsbp, --reset {reset}: spikes at {np.flatnonzero(fired).tolist()}"
        for name, trace in traces.items():
            away = float(np.abs(after_reset - trace[:, 1]).max())
            at = np.flatnonzero(trace[:, 2] > 0).tolist()
            yield f"  {name}: spikes at {at}, potentials after resets {away:.2g} away"
        stsbp("train", "--resume", run)
        yield f"  trained for an epoch: {json.loads(stsbp('evaluate', run, '--json'))['f1']:.0%} of spike times"


def main(arguments: list[str] | None = None) -> None:
    """Import what other libraries export."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the files, which must not exist")
    parser.add_argument("--paper", type=Path, metavar="REPOSITORY", help="a checkout of the repository of NIR")
    parser.add_argument("--peer", action="append", default=[], help="NAME=PYTHON: a library, and its interpreter")
    options = parser.parse_args(arguments)
    folder = options.folder
    folder.mkdir(parents=True)
    for peer in options.peer:
        name, _, python = peer.partition("=")
        command = [python, str(HERE / "import_nir_peer.py"), name, str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if options.paper is not None:
        print(*paper(folder, options.paper), sep="\n")
    columns = ("network", "options", "other spikes", "spikes", "weights rounded", "loss", "after an epoch")
    print(table(columns, [row(folder, name) for name in HOW if (folder / f"{name}.nir").exists()]))


if __name__ == "__main__":
    sys.exit(guarded(main))
