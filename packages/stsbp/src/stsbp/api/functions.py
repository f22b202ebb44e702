"""The functions that `stsbp` offers, with their documentation.

What they need is imported when one of them is called, so that `import stsbp` and `stsbp --help` are quick.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from stsbp_spec.engine.backend import AbstractBackend
    from stsbp_spec.networks.spec import NetworkSpec

    from stsbp.api.progress import ProgressArgument
    from stsbp.api.run import Run
    from stsbp.api.sweep import Sweep
    from stsbp.config import RunConfig
    from stsbp.training.tracking import OpenTracker
    from stsbp.training.trained import Trained

__all__ = ["compare", "load_hub", "load_run", "load_sweep", "save_run", "sweep", "train"]


def train(
    data: Any = None,
    network: str | NetworkSpec | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool | str | os.PathLike[str] = False,
    overwrite: bool = False,
    preset: str | None = None,
    config: str | os.PathLike[str] | RunConfig | Mapping[str, Any] | None = None,
    backend: AbstractBackend | str | None = None,
    device: str | None = None,
    progress: ProgressArgument = True,
    stop_after: float | None = None,
    track: str | OpenTracker | Sequence[str | OpenTracker] | None = None,
    allow_imports: bool = False,
    **settings: Any,
) -> Run:
    """Train a network, as `stsbp train` does: with the same settings, files and bits.

        run = stsbp.train("digits", "16C3-P2", epochs=3, out="runs/digits")
        run = stsbp.train((inputs, labels), "64-32", lr=1e-3)

    Args:
        data: name of a data set such as `"digits"` or `"events:FILE.npz"`; a `stsbp.datasets.Dataset`; or arrays:
            `(inputs, labels)`, `(inputs, labels, test_inputs, test_labels)`, two pairs of such, or a dict with
            `inputs`, `labels` or `targets`, and perhaps `lengths`, `classes`, `test_inputs` and so on. Inputs are
            images `[n, C, H, W]` or `[n, N]`, or spikes `[T, n, C, H, W]` or `[T, n, N]`; labels are integers `[n]`;
            targets are spike trains `[T, n, N]`. None: the data set of `preset`, `config` or `resume`.
        network: hidden layers in the notation of `net`, or a whole network; None: that of the settings. The names of
            its layers, such as `conv1` and `linear2`, are in `print(run.network.table())`.
        out: folder of the run; None: `runs/DATASET-DATE-TIME`.
        resume: True: continue the run in `out`, if there is one; or the folder of the run to continue.
        overwrite: replace an earlier run in `out`.
        preset: name of a published experiment, whose settings are used.
        config: settings of a TOML file, of another run (`run.settings`) or of a dict, which `settings` override.
        backend, device: name of the backend, or one that is open, and its device; None: torch if it is installed.
        progress: True: show the progress as the command line does, in a notebook in the cell. False: show nothing, and
            warn through the module `warnings`. A function receives a `stsbp.api.progress.Progress` after every update.
            If it raises an error, the state is saved, and the error is raised.
        stop_after: number of minutes after which the training stops. The run is returned unfinished.
        track: other programs that show the records: `"tensorboard"`, `"wandb"`, `"mlflow"`, `"module:function"`, a
            function that opens a tracker (docs/trackers.md), or several of these. Functions are not stored with the
            run; give them again to continue it. None: those of the run to continue, or of `config`.
        allow_imports: import the modules of classes and functions that the file of `config` or the run to continue
            names. Only for files that you trust.
        settings: every setting of the command line by its name: `epochs=3`, `batch_size=20`, `test=False`.

    Returns:
        The trained run. `run.finished` is False if `stop_after` stopped it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. The current update is finished, and the state is saved; a second Ctrl-C
            does not wait. Continue with `resume=True`. Only the main thread of Python can wait for Ctrl-C.
        ConfigError: a setting is unknown or outside its domain, or differs from that of the run to continue.
        StsbpError: any other error that is not a bug, for example `DataError`, `FileError` or `NumericError`.
    """
    from stsbp.api.train import train_network

    return train_network(
        data,
        network,
        settings,
        out=out,
        resume=resume,
        overwrite=overwrite,
        preset=preset,
        config=config,
        backend=backend,
        device=device,
        progress=progress,
        stop_after=stop_after,
        track=track,
        allow_imports=allow_imports,
    )


def load_run(
    run: str | os.PathLike[str],
    checkpoint: Literal["last", "best"] = "last",
    *,
    backend: AbstractBackend | str | None = None,
    device: str | None = None,
    data: Any = None,
) -> Run:
    """Load a run from its folder.

        run = stsbp.load_run("runs/digits")
        run.predict(images).classes

    Args:
        run: the folder that `stsbp train --out` or `stsbp.train` wrote.
        checkpoint: which of the two checkpoints to load.
        backend: name of the backend to use, as `stsbp backends` lists them. It may differ from the one that trained
            the run. None: torch if it is installed, otherwise the first installed backend.
        device: device of the backend; None: its default.
        data: the arrays on which the run was trained, as `stsbp.train` takes them, for `evaluate` and `report`. None:
            its data set has a name, or is not needed.

    Raises:
        CheckpointError: there is no such run, or its checkpoint is damaged.
        BackendError: the backend or the device is not available. The message gives the reason and a remedy.
        DataError: the data have another form.
    """
    from stsbp.api.run import read_run

    return read_run(run, checkpoint, backend, device, data)


def load_hub(
    reference: str | os.PathLike[str],
    *,
    backend: AbstractBackend | str | None = None,
    device: str | None = None,
) -> Trained:
    """Load a network from the package stsbp-models, from a folder that `stsbp export --to hub` wrote, or from a
    repository of the Hugging Face Hub.

        trained = stsbp.load_hub("model:mnist")
        trained.predict(images).classes

    Args:
        reference: `model:NAME`, where `stsbp models` lists the names; a folder; or `hub:OWNER/NAME@COMMIT`. The commit
            is a hash of 40 hexadecimal digits.
        backend, device: as for `load_run`.

    Raises:
        ConfigError: the commit is missing, there is no such model, or huggingface_hub or stsbp-models is not installed.
        CheckpointError: the files cannot be downloaded, are damaged, or are not a network of stsbp.
        BackendError: the backend or the device is not available. The message gives the reason and a remedy.
    """
    from stsbp.api.hub import load_network

    return load_network(reference, backend, device)


def save_run(
    network: Any,
    folder: str | os.PathLike[str],
    *,
    weights: Mapping[str, Any] | None = None,
    state: Any = None,
    updates: int | None = None,
    history: Sequence[Any] | Mapping[str, Sequence[float]] | None = None,
    data: Any = None,
    classes: Sequence[str] | None = None,
    overwrite: bool = False,
    backend: AbstractBackend | str | None = None,
    device: str | None = None,
    progress: ProgressArgument = False,
    **settings: Any,
) -> Run:
    """Save a network that a loop of your own trained as a run, which `evaluate`, `report` and `export` take.

        stsbp.save_run(net, "runs/mine", data="digits", steps=8)                         # a module of stsbp_torch
        stsbp.save_run(spec, "runs/mine", weights=weights, data=(x, y, test_x, test_y))  # weights of JAX or numpy
        stsbp.save_run(trainer, "runs/mine", state=state, data=(x, y), batch_size=20)    # `backend.trainer`

    With data, the network is evaluated, and `stsbp.train(resume=folder)` trains the run further: from these weights, or
    where `state` ended.

    Args:
        network: a `Network` or `Sequential` of `stsbp_torch`; a `NetworkSpec` with `weights` or `state`; or the trainer
            of a backend with `state`.
        folder: the folder of the run.
        weights: weights by the names of `initial_weights`, as arrays of numpy, torch or JAX.
        state: the state of the training, with which a resumed run continues: a `TrainState`, the result of
            `export_state`, an optimiser of torch (AdamW, Adam or SGD), or a state of optax with the moments of Adam or
            SGD. Its updates must be whole epochs of the data, so give `batch_size` with the data. Hyperparameters of a
            trainer and of torch become settings. Optax does not tell them, so give `optimizer`, `lr` and so on.
        updates: number of updates, if `state` does not say it, as that of SGD.
        history: numbers of your loop, which the report draws: `[{"loss": 0.4, "accuracy": 0.8}, ...]`, or
            `{"loss": [0.4, ...]}`, or losses alone.
        data: the data, as `stsbp.train` takes them; None: the run can be evaluated only on other data.
        classes: names of the classes, if `data` does not say them; `()`: labels are spike trains.
        overwrite: replace an earlier run in the folder.
        backend, device: as for `stsbp.train`. They may differ from what trained the network.
        progress: as for `stsbp.train`.
        settings: settings of the training, as for `stsbp.train`. Give `steps`, unless the data determine it, and those
            by which outputs are measured: `loss`, `label_pattern`, `undesired_pattern`.

    Raises:
        ConfigError: the network is no network of stsbp, or a setting is unknown or contradicts it.
        NumericError: a weight is not finite, or too large.
        FileError: the folder is not empty, or cannot be written.
        StsbpError: any other error that is not a bug.
    """
    from stsbp.api.save import save_network

    return save_network(
        network,
        folder,
        settings,
        weights=weights,
        state=state,
        updates=updates,
        history=history,
        data=data,
        classes=classes,
        overwrite=overwrite,
        backend=backend,
        device=device,
        progress=progress,
    )


def compare(
    runs: Sequence[Run | str | os.PathLike[str]], *, sort: str | None = None, reverse: bool = False, short: bool = False
) -> list[dict[str, Any]]:
    """Compare runs by their records, as `stsbp compare` does: one row for each run, `pandas.DataFrame(compare(runs))`.

    A row has the folder, the data set, the settings in which the runs differ, `epochs_done`, the last results such as
    `test.accuracy`, `training.loss` and `training.rates.conv1`, the `seconds` of the training, and the backend.

    Args:
        runs: runs or their folders.
        sort: the name of a value by which the rows are sorted, smallest first; also any setting. None: as in `runs`.
        reverse: whether the largest value comes first.
        short: whether a row has only the settings, the epochs, accuracy, F1 or mean squared error, the loss, the energy
            and the time.

    Raises:
        ConfigError: no run has a value of the name `sort`. The message lists all names.
        CheckpointError: there is no such run, or its files cannot be read.
    """
    from stsbp.api.run import compared

    return compared(runs, sort=sort, reverse=reverse, short=short)


def sweep(
    data: str,
    vary: Mapping[str, str | Sequence[Any]],
    *,
    objective: str | Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    trials: int | None = None,
    jobs: int = 1,
    sampler: str | None = None,
    pruner: str = "none",
    sampler_seed: int = 0,
    storage: str | os.PathLike[str] | None = None,
    study: str | None = None,
    heartbeat: int = 60,
    dataset: str | None = None,
    energy_table: str | os.PathLike[str] | None = None,
    backend: str | None = None,
    device: str | None = None,
    progress: bool = True,
    stop_after: float | None = None,
    **settings: Any,
) -> Sweep:
    """Train with different settings, and find those with the best validation result, as `stsbp sweep` does.

        sweep = stsbp.sweep("digits", {"tau_m": "4:16:log", "threshold": [0.5, 1.0]}, trials=20, epochs=5)
        sweep.best[0]

    Each trial is trained in its own process. Call it again with the same arguments to continue a sweep that was
    stopped or killed.

    Args:
        data: name of a data set or of a preset. Arrays have no name, by which other processes could load them.
        vary: the settings to vary, by name: a range as text, `"4:16"`, `"4:16:log"`, `"1:8:int"` or `"0:1:0.1"`, or a
            list of values.
        objective: name of the figure to optimise on the validation samples, or of several for a Pareto front:
            `accuracy`, `f1`, `mse`, `loss`, `latency`, `energy`, `operations`, `spikes`. None: that of the data.
        out: folder of the sweep; None: `runs/NAME-sweep`.
        trials: number of trials; None: 20, or all points of a grid.
        jobs: number of trials that are trained at the same time.
        sampler: `tpe`, `random`, `grid`, `qmc`, `nsga2` or `nsga3`; None: `tpe` for one objective, `nsga2` for several.
        pruner: `none`, `median`, `hyperband` or `halving`, which ends trials early that do worse than others.
        sampler_seed: seed of the sampler.
        storage: file of a journal, or URL of a database, for several machines; None: a database in `out`.
        study: name of the study in the storage; None: `NAME-sweep`.
        heartbeat: number of seconds after which a running trial records again that it is alive.
        dataset: data set in place of that of the preset.
        energy_table: `float32`, `int32`, `int8`, or a file, for the objective `energy`.
        backend, device: names of the backend and of its device; None: torch if it is installed.
        progress: whether to show the progress on standard error.
        stop_after: number of minutes after which the sweep stops. The trials so far are returned.
        settings: settings that are the same in all trials: `epochs=3`, `batch_size=20`.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. All trials have saved their states.
        ConfigError: optuna is not installed; or a setting, an objective or a method is unknown or does not fit the
            others, or differs from those of the sweep to continue.
        StsbpError: any other error that is not a bug.
    """
    from stsbp.api.sweep import run

    return run(
        data,
        vary,
        settings,
        objective=objective,
        out=out,
        trials=trials,
        jobs=jobs,
        sampler=sampler,
        pruner=pruner,
        sampler_seed=sampler_seed,
        storage=storage,
        study=study,
        heartbeat=heartbeat,
        dataset=dataset,
        energy_table=energy_table,
        backend=backend,
        device=device,
        progress=progress,
        stop_after=stop_after,
    )


def load_sweep(
    out: str | os.PathLike[str] | None = None,
    *,
    storage: str | os.PathLike[str] | None = None,
    study: str | None = None,
) -> Sweep:
    """Read the trials of a sweep from its storage alone, as `stsbp sweep --table` does.

    Args:
        out: folder of the sweep. It may lack the runs.
        storage: file of a journal, or URL of a database; None: that in `out`.
        study: name of the study; None: the only one of the storage.

    Raises:
        ConfigError: optuna is not installed, or there is no such study.
        FileError: the storage cannot be opened.
    """
    from stsbp.api.sweep import load

    return load(out, storage, study)
