"""Networks times neuron models times seeds on one data set: a table with means and confidence intervals.

    python experiments/grid.py fsdd-timing --nets {width} {width}R '{width}{delay=4}' --neurons lif alif \\
        --parameters 40000 --seeds 3 --backend torch --out runs/delays -- --data-dir D --epochs 20 --threads 1

Each pair of a network and a neuron model is a `stsbp experiment` in a folder of its own below --out. All have the
settings after `--`, such as the number of epochs. One process trains at a time. If the script is stopped, start it
again: finished pairs are skipped, and the pair that was interrupted goes on. With a larger --seeds, seeds are added.

{width} in a network stands for a number of neurons. With --parameters P, each network gets the width with which its
number of trained parameters is nearest to P, so that networks with and without recurrence can be compared.
The accuracy is mean ± half the width of the 95 % confidence interval over the seeds (Student's t). It does not include
the chance of which samples are in the test set.

The test set chooses nothing: as in `stsbp experiment`, the epoch with the best validation result is tested.
--out/grid.json and --out/grid.md contain the pairs that are finished so far.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from stsbp.config import SettingsSource, resolve
from stsbp.errors import ConfigError, StsbpError
from stsbp.training.build import build_network, load_data

WIDTH = "{width}"
MOST_WIDTH = 1 << 14
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantiles of Student's t distribution with 1, 2, ... degrees of freedom."""
MOST_SEEDS = len(STUDENT) + 1


class Pair(NamedTuple):
    """A network and the neuron model of its hidden layers, as `stsbp train` reads them, without `{width}`."""

    net: str
    neuron: str

    @property
    def folder(self) -> str:
        """A readable name; the digest keeps apart the pairs that differ only in other characters."""
        text = f"{self.net} {self.neuron}"
        readable = re.sub("[^A-Za-z0-9]+", "-", text).strip("-")[:60]
        return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of a mean, from Student's t; None for a single value."""
    if len(values) < 2:
        return None
    return STUDENT[len(values) - 2] * stdev(values) / math.sqrt(len(values))


def nearest_width(parameters: Callable[[int], int], wanted: int) -> int:
    """The width whose number of parameters, which grows with the width, is nearest to `wanted`; the lower of two.

    Raises:
        ConfigError: even `MOST_WIDTH` neurons have fewer than `wanted` parameters.
    """
    low, high = 1, MOST_WIDTH
    if parameters(high) < wanted:
        raise ConfigError(f"{MOST_WIDTH:,} neurons have fewer than {wanted:,} parameters; give a smaller --parameters")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if parameters(middle) >= wanted else (middle + 1, high)
    return low - 1 if low > 1 and wanted - parameters(low - 1) <= parameters(low) - wanted else low


def counter(dataset: str, data_dir: str) -> Callable[[Pair], int]:
    """A function that counts the trained parameters of a pair. The data are loaded once, for their shape."""

    def settings(**network: str) -> dict[str, Any]:
        return {"dataset": dataset, **({"data_dir": data_dir} if data_dir else {}), **network}

    inputs = load_data(resolve([SettingsSource("command line", settings())])).inputs

    def count(pair: Pair) -> int:
        config = resolve([SettingsSource("command line", settings(net=pair.net, neuron=pair.neuron))])
        return sum(math.prod(parameter.shape) for parameter in build_network(config, inputs).parameters.values())

    return count


def pairs_of(nets: Sequence[str], neurons: Sequence[str], count: Callable[[Pair], int], wanted: int) -> list[Pair]:
    """All pairs. `{width}` is replaced so that the number of parameters is nearest to `wanted`."""
    pairs = []
    for net in nets:
        for neuron in neurons:

            def parameters(width: int, net: str = net, neuron: str = neuron) -> int:
                return count(Pair(net.replace(WIDTH, str(width)), neuron))

            width = nearest_width(parameters, wanted) if WIDTH in net else 0
            pairs.append(Pair(net.replace(WIDTH, str(width)), neuron))
    return pairs


def results(pair: Pair, command: Sequence[str], folder: Path) -> dict[str, Any]:
    """The contents of `experiment.json` of a pair, after training what is missing.

    Raises:
        SystemExit: the training failed, or was stopped. Its message is on standard error.
    """
    file, words = folder / "experiment.json", [*command, "--net", pair.net, "--neuron", pair.neuron]
    words += ["--out", str(folder)]
    if not is_done(file, words):
        process = subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
        if process.returncode:
            print(f"exit code {process.returncode}: {' '.join(words)}", file=sys.stderr)
            raise SystemExit(process.returncode)
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def is_done(file: Path, words: Sequence[str]) -> bool:
    """Whether an `experiment.json` has the results of all seeds, and of this command."""
    if not file.is_file():
        return False
    document = json.loads(file.read_text())
    trained = {result["seed"] for result in document["seeds"]}
    typed = list(words[words.index("--backend") :])
    return document["command"][-len(typed) :] == typed and trained == set(document["asked"])


def row_of(pair: Pair, parameters: int, document: dict[str, Any]) -> dict[str, Any]:
    """A row of the table; accuracies in percent.

    Raises:
        ConfigError: the labels of the data set are sequences.
    """
    tests = [result["test"] for result in document["seeds"]]
    if any("accuracy" not in test for test in tests):
        raise ConfigError(f"the samples of {document['settings']['dataset']} have no classes, so no accuracy")
    accuracies = [100 * test["accuracy"] for test in tests]
    validations = [100 * r["validation"]["accuracy"] for r in document["seeds"] if r.get("validation")]
    return {
        "net": pair.net,
        "neuron": pair.neuron,
        "parameters": parameters,
        "epochs": document["settings"]["epochs"],
        "seeds": [result["seed"] for result in document["seeds"]],
        "accuracy": accuracies,
        "mean": fmean(accuracies),
        "half_width": half_width(accuracies),
        "validation_mean": fmean(validations) if validations else None,
        "seconds_per_epoch": document["summary"]["seconds_per_epoch"]["mean"],
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    header = ["network", "neuron", "parameters", "epochs", "seeds", "test accuracy, %", "validation, %", "s per epoch"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        interval = "" if row["half_width"] is None else f" ± {row['half_width']:.2f}"
        validation = "" if row["validation_mean"] is None else f"{row['validation_mean']:.2f}"
        shown = (f"`{row['net']}`", f"`{row['neuron']}`", f"{row['parameters']:,}", row["epochs"], len(row["seeds"]))
        figures = (f"{row['mean']:.2f}{interval}", validation, f"{row['seconds_per_epoch']:.1f}")
        lines.append([str(cell) for cell in (*shown, *figures)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(words: Sequence[str]) -> None:
    """Train all pairs, and write the table after each of them."""
    own, options = (list(words), [])
    if "--" in own:
        cut = own.index("--")
        own, options = own[:cut], own[cut + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a data set, with its options: randman:classes=5")
    parser.add_argument("--nets", nargs="+", required=True, metavar="NET")
    parser.add_argument("--neurons", nargs="+", default=["lif"], metavar="NEURON")
    parser.add_argument("--parameters", type=int, default=0, metavar="P", help="wanted number of trained parameters")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, MOST_SEEDS + 1), metavar="N")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--out", type=Path, default=Path("runs/grid"))
    arguments = parser.parse_args(own)
    if any(WIDTH in net for net in arguments.nets) != (arguments.parameters > 0):
        parser.error(f"--parameters P chooses {WIDTH} in --nets: give both or neither")
    data_dir = options[options.index("--data-dir") + 1] if "--data-dir" in options[:-1] else ""
    command = [sys.executable, "-m", "stsbp", "--backend", arguments.backend, "experiment", arguments.dataset]
    command += ["--seeds", str(arguments.seeds), *options]
    try:
        count = counter(arguments.dataset, data_dir)
        pairs = pairs_of(arguments.nets, arguments.neurons, count, arguments.parameters)
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for pair in pairs:
            rows.append(row_of(pair, count(pair), results(pair, command, arguments.out / pair.folder)))
            document = {"dataset": arguments.dataset, "options": options, "rows": rows}
            (arguments.out / "grid.json").write_text(json.dumps(document, indent=1) + "\n")
            (arguments.out / "grid.md").write_text(markdown(rows))
            print(markdown(rows).splitlines()[-1], flush=True)
    except StsbpError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
