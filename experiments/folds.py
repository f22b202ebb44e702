"""Settings compared on folds of the training samples, so that the test samples choose nothing: rows of a table.

    python experiments/folds.py nmnist --data-dir D --folds 0 1 --out runs/folds/bent augment_elastic=2.0 epochs=25

The training samples are cut into five folds; with --folds K a network is trained on the other four and tested on fold
K. Each is a run in OUT/fold-K (`stsbp report --no-samples` reads it); started again, the script goes on where it
was stopped. Settings are written as in the file of `stsbp train --config`.

The log loss tells settings apart more finely than the accuracy, in which a sample is half a percent: it is that of the
softmax of minus the distances to the label sequences, scaled by the factor that makes it least.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from stsbp.config import RunConfig, SettingsSource, resolve
from stsbp.datasets import Split, Subset, hold_out
from stsbp.errors import ConfigError, StsbpError
from stsbp.training import checkpoint
from stsbp.training.build import Data, Task, build_task, load_data
from stsbp.training.loop import Stopped, import_checkpoint, stop_on_signals, train
from stsbp.training.progress import choose_reporter
from stsbp.training.run_folder import RunFolder
from stsbp_spec.engine.trainer import TrainState
from stsbp_spec.models.decoders import nearest_sequence
from stsbp_spec.registry import open_backend
from stsbp_spec.typing import AnyArray, Int64

FOLDS = 5
SEED = 77
"""Of the cut, with which the published table was made."""


def cut(split: Split, fold: int) -> tuple[Subset, Subset]:
    """What a network is trained on, and the fold, equally many samples of each class in it."""
    indices, size = np.arange(len(split)), len(split) // FOLDS
    remaining, part = Subset(split, indices), indices
    for k in range(fold + 1):
        if k == FOLDS - 1:
            part = remaining.indices
        else:
            kept_samples, held = hold_out(remaining, size, seed=SEED + k)
            remaining, part = Subset(split, remaining.indices[kept_samples.indices]), remaining.indices[held.indices]
    return Subset(split, np.setdiff1d(indices, part)), Subset(split, part)


def log_loss(distances: AnyArray, labels: Int64) -> float:
    """Least mean of minus the log probability of the class, from distances `[n, K]`, over the scales of the softmax."""
    d = distances - distances.min(axis=1, keepdims=True)
    class_distance = d[np.arange(len(labels)), labels]
    scales = np.geomspace(0.02, 50, 60) / max(float(distances.std()), 1e-9)
    return min(float((np.log(np.exp(-s * d).sum(axis=1)) + s * class_distance).mean()) for s in scales)


def test(task: Task, state: TrainState, split: Split) -> tuple[float, float]:
    """Accuracy of the nearest label sequence in percent, and the log loss."""
    assert task.distances is not None  # digits has classes
    batches = []
    for i in range(0, len(split), 60):
        batch, _ = task.batch(split, np.arange(i, min(i + 60, len(split))))
        batches.append(task.distances(task.trainer.predict(state, batch.inputs, task.config.steps).spikes))
    distances = np.concatenate(batches).astype(np.float64)
    return 100 * float((nearest_sequence(distances) == split.labels).mean()), log_loss(distances, split.labels)


def main() -> None:
    """Read the command line and run `compare`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--folds", nargs="+", type=int, default=[0, 1], choices=range(FOLDS), metavar="K")
    parser.add_argument("--out", type=Path, default=Path("runs/folds"))
    arguments = parser.parse_intermixed_args()
    try:
        settings = tomllib.loads("\n".join(arguments.settings))
    except tomllib.TOMLDecodeError as error:
        parser.error(f"settings are NAME=VALUE as in TOML, for example loss='\"hamming\"': {error}")
    values = {"dataset": arguments.dataset, "data_dir": arguments.data_dir, "test_every": 0, "threads": 1, **settings}
    try:
        config = resolve([SettingsSource("command line", values)])
    except ConfigError as error:
        parser.error(str(error))
    try:
        compare(config, arguments.folds, arguments.out, " ".join(arguments.settings) or "preset")
    except Stopped as stopped:
        print(f"{stopped} and saved; the same command goes on", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except StsbpError as error:
        sys.exit(f"error: {error}")


def compare(config: RunConfig, folds: Sequence[int], out: Path, settings: str) -> None:
    """Train on the complement of each fold, or go on, and print a row for each."""
    backend, full_data = open_backend("torch"), load_data(config)
    if full_data.inputs.sequences:
        raise ConfigError(f"the samples of {config.dataset} have no classes, so neither accuracy nor log loss")
    if len(full_data.train) < FOLDS * len(full_data.inputs.classes):
        raise ConfigError(f"{len(full_data.train)} training samples are too few for {FOLDS} folds")
    print("| fold | settings | accuracy % | log loss |\n|---|---|---|---|", flush=True)
    for fold in folds:
        train_split, held = cut(full_data.train, fold)
        data, folder = Data(full_data.dataset, train_split, None, held), RunFolder(out / f"fold-{fold}")
        task = build_task(config, data.inputs, backend, len(train_split))
        if folder.is_run and folder.read_config().digest() != config.digest():
            raise ConfigError(f"{folder.path} was begun with other settings; choose another --out")
        saved = checkpoint.load(folder.path, "last") if folder.has_checkpoint else None
        folder.check_writable()
        show = choose_reporter()
        with folder.lock(), stop_on_signals() as stop:
            if saved is None:
                folder.write_config(config)
            folder.note_start(backend, sys.argv, 0 if saved is None else int(saved.info["step"]))
            train(task, data, folder, show, stop, saved)
        show.close()
        accuracy, loss = test(task, import_checkpoint(task, checkpoint.load(folder.path, "last"), folder), held)
        print(f"| {fold} | {settings} | {accuracy:.2f} | {loss:.4f} |", flush=True)


if __name__ == "__main__":
    main()
