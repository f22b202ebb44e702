"""Writes a network that another loop trained as a run: settings, checkpoint, records, for `stsbp.save_run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stsbp_spec.engine.trainer import TrainState
from stsbp_spec.typing import AnyArray

from stsbp.config import RunConfig
from stsbp.errors import ConfigError
from stsbp.training import checkpoint
from stsbp.training.blank import warn_of_blank
from stsbp.training.build import Data, Task, own_flushes, updates_per_epoch
from stsbp.training.evaluate import Evaluation, evaluate
from stsbp.training.loop import check_state, identity_of
from stsbp.training.metrics import MetricsFile, Sums
from stsbp.training.progress import Reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.timing import Measuring

__all__ = ["epochs_of", "write_network"]


def epochs_of(step: int, samples: int | None, config: RunConfig) -> int:
    """Number of epochs that `step` updates are. A run continues only at the beginning of an epoch.

    Args:
        step: number of updates.
        samples: number of training samples; None: not known.
        config: settings, with the number of samples of an update.

    Raises:
        ConfigError: these are not whole epochs.
    """
    if step == 0 or samples is None:
        return 0
    per_epoch = updates_per_epoch(config, samples)
    epochs, remaining_updates = divmod(step, per_epoch)
    if remaining_updates:
        raise ConfigError(
            f"the state has {step} updates, but an epoch of {samples} training samples has {per_epoch} with batch_size="
            f"{config.batch_size}, and a run continues only at the beginning of an epoch; give the batch_size and the "
            "data of your loop, or save the weights without the state"
        )
    return epochs


def write_network(
    folder: RunFolder,
    task: Task,
    data: Data | None,
    tensors: Mapping[str, AnyArray],
    history: Sequence[Mapping[str, float]],
    reporter: Reporter,
    command: str,
    *,
    overwrite: bool,
) -> None:
    """Write a run with these weights, without training. If there is data, the network is evaluated.

    Args:
        folder: the folder, which is free unless `overwrite`.
        task: settings, network and backend.
        data: the data; None: not known. The run then cannot continue.
        tensors: the state, as `Trainer.export_state` returns it.
        history: numbers of the loop that trained the network, by name.
        reporter: shows the progress.
        command: how the run was made.
        overwrite: whether an earlier run in the folder is replaced.

    Raises:
        NumericError, ShapeError: the state does not fit the network, or no training begins with it.
        FileError: the run cannot be written.
    """
    check_state(task.network, tensors)
    state = task.trainer.import_state(dict(tensors))
    step, config = int(tensors["step"]), task.config
    epoch = epochs_of(step, None if data is None else len(data.train), config)
    position = {"step": step, "epoch": epoch}
    entries: list[dict[str, Any]] = [
        {"kind": "history", "number": number, **position, "history": dict(figures)}
        for number, figures in enumerate(history, 1)
    ]
    best = None
    splits = {} if data is None else data.splits()
    warn_of_blank(config.dataset, task.inputs.coding, splits, reporter, config.test_on)
    for flush in own_flushes(config):
        reporter.warn(flush)
    for name in ("validation", "test"):
        if name in splits:
            entries.append({**_evaluated(task, state, splits[name], name, reporter).record(name), **position})
    if epoch:
        loss = _evaluated(task, state, splits["train"], "train", reporter).means()["loss"]
        best = {**position, "by": "training loss", "value": loss, "loss": loss}
    with folder.new_run(config, task.backend, [command], step=step, overwrite=overwrite):
        with MetricsFile(folder.files) as metrics:
            for entry in entries:
                metrics.write(entry)
            written = {"metrics_bytes": metrics.sync(), "metrics_sha256": metrics.sha256}
        identity = identity_of(task, data)
        if best is not None:
            checkpoint.save(folder.files, "best", tensors, {"epoch": epoch, "best": best, **identity}, step=step)
        epoch_position = {"epoch": epoch, "batch": 0, "finished": epoch >= config.epochs}
        sums = {"sums": Sums().to_json(), "window": Sums().to_json()}
        info = {**epoch_position, **sums, "best": best, **written, **identity}
        checkpoint.save(folder.files, "last", tensors, info, step=step)


def _evaluated(task: Task, state: TrainState, split: Any, name: str, reporter: Reporter) -> Evaluation:
    samples = len(split)
    return evaluate(
        task,
        state,
        split,
        task.config.batch_size,
        lambda samples_done: reporter.loading(f"evaluating {name}", samples_done, samples),
        measuring=Measuring(),
    )
