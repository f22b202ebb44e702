"""Evaluates a run on its own data or on those of another data set, for `stsbp evaluate` and `Run.evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stsbp.config import RunConfig
from stsbp.datasets import Dataset, DatasetInfo, Split
from stsbp.energy.neurobench import check_neurobench, run_neurobench
from stsbp.energy.table import EnergyTable, asked_table
from stsbp.energy.totals import RunEnergy
from stsbp.errors import ConfigError
from stsbp.training.blank import warn_of_blank
from stsbp.training.build import TOLERANCE, Data, load_data, load_test_set
from stsbp.training.evaluate import Evaluation, evaluate
from stsbp.training.overlap import check_on_other, names_on, warn_of_seen
from stsbp.training.progress import Reporter
from stsbp.training.rollout import Rollout, roll_out
from stsbp.training.timing import Measuring
from stsbp.training.trained import Trained

__all__ = ["EvaluationRequest", "RunEvaluation", "check_on", "evaluate_run"]


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate a run on, and how.

    Attributes:
        split: split of the run's own data.
        on: name of another data set, whose test samples are used; None: the run's own data.
        data_dir: folder of the data; None: that of the run.
        other: arrays that are used in place of a data set; `on` is then its name.
        batch_size: number of samples at a time; None: that of the run.
        tolerance: largest distance in steps between a spike and its target; None: `TOLERANCE`.
        tolerances: tolerances in steps of the measures of spike times; None: that of `Measuring`, as for the two below.
        cost: cost of moving a spike by one step in the Victor-Purpura distance.
        seed: seed with which targets are shuffled between samples, for the chance level.
        energy: whether operations and their energy are counted.
        neurobench: whether NeuroBench's harness runs too.
        energy_table: energy of operations, as `energy_table` reads it; None: the default.

    Raises:
        ConfigError: both another data set and a split of the run's own data are named, or a table without `energy`.
    """

    split: str = "test"
    on: str | None = None
    data_dir: str | None = None
    other: DatasetInfo | None = None
    batch_size: int | None = None
    tolerance: int | None = None
    tolerances: tuple[int, ...] | None = None
    cost: float | None = None
    seed: int | None = None
    energy: bool = False
    energy_table: str | None = None
    neurobench: bool = False

    def __post_init__(self) -> None:
        check_on(self.on, self.split)
        # Read at once, so that a wrong table is told before the data are loaded.
        _ = self.table

    @cached_property
    def table(self) -> EnergyTable | None:
        """The energy of operations; None: it is not asked for."""
        return asked_table(energy=self.energy, name=self.energy_table)

    def check(self, config: RunConfig) -> None:
        """Raise `ConfigError` if the other data set is the run's own."""
        if self.on is not None and self.other is None:
            check_on_other(config, self.on, self.data_dir)


@dataclass(frozen=True)
class RunEvaluation:
    """The results of a run on some samples.

    Attributes:
        evaluation: the results.
        tolerance: largest distance in steps between a spike and its target.
        record: the results as `stsbp evaluate --json` prints them, without the names of the run and the checkpoint.
        rollout: the values with which the network continues a series; None: the data set has none.
    """

    evaluation: Evaluation
    tolerance: int
    record: dict[str, Any]
    rollout: Rollout | None = None


def check_on(on: str | None, split: str) -> None:
    """Raise `ConfigError` if both another data set and a split of the run's own data are named."""
    if on is not None and split != "test":
        raise ConfigError(f"--on always uses the test samples of {on}; leave --split {split!r} out")


def evaluate_run(trained: Trained, request: EvaluationRequest, reporter: Reporter) -> RunEvaluation:
    """Evaluate a run, together with the other processes of its task. The reporter is closed at the end.

    Raises:
        ConfigError: the data are not those of the run, or do not fit it; or the network has no spikes to match.
        DataError: the data are missing or malformed.
    """
    _check_spikes(trained, request)
    if request.neurobench:
        check_neurobench(processes=trained.task.group.size)
    tolerance = TOLERANCE if request.tolerance is None else request.tolerance
    parameters: dict[str, Any] = {"tolerances": request.tolerances, "cost": request.cost, "seed": request.seed}
    measuring = Measuring(**{name: value for name, value in parameters.items() if value is not None})
    energy = None if request.table is None else RunEnergy(trained.network, request.table)
    try:
        dataset, samples, shared_count = _samples(trained, request, reporter)
        config, on = trained.settings, request.on
        if trained.task.group.leads:
            coding = trained.task.inputs.coding
            warn_of_blank(on or config.dataset, coding, {request.split: samples}, reporter, on or config.test_on)
        evaluation = evaluate(
            trained.task,
            trained.state,
            samples,
            request.batch_size or trained.settings.batch_size,
            lambda done: reporter.loading(f"evaluating {request.split}", done, len(samples)),
            tolerance,
            measuring,
            energy,
        )
        for note in dataset.notes:
            reporter.note(note)
        rollout = None
        # Weights are those of every process, so one of them can compute it alone.
        if dataset.forecast is not None and request.split == "test" and trained.task.group.leads:
            rollout = roll_out(trained, dataset.forecast)
        harness = None
        if request.neurobench:
            harness = run_neurobench(trained, samples, request.batch_size or trained.settings.batch_size)
    finally:
        reporter.close()
    record = _record(trained, request, evaluation, shared_count)
    record |= {} if rollout is None else {"rollout": rollout.record()}
    record |= {} if harness is None else {"neurobench": harness.record()}
    return RunEvaluation(evaluation, tolerance, record, rollout)


def _check_spikes(trained: Trained, request: EvaluationRequest) -> None:
    """Raise `ConfigError` if output spikes are to be measured, but the network has a readout."""
    of_spikes = {
        "--tolerance": request.tolerance,
        "--tolerances": request.tolerances,
        "--cost": request.cost,
        "--seed": request.seed,
    }
    if trained.network.has_readout and (typed := [name for name, given in of_spikes.items() if given is not None]):
        raise ConfigError(
            f"{typed[0]} applies to output spikes, but the readout of this run has none; leave {typed[0]} out"
        )


def _samples(trained: Trained, request: EvaluationRequest, reporter: Reporter) -> tuple[Dataset, Split, int | None]:
    """The samples, their data set, and how many of them the run was trained on; None: that is not known."""
    config, group = trained.settings, trained.task.group
    on, data_dir = request.on, request.data_dir
    if on is None:
        with names_on(config, data_dir):
            data = group.one_by_one(lambda: load_data(config, reporter.loading, data_dir, True, trained.given))
            return data.dataset, trained.samples(data, request.split), None
    dataset = group.one_by_one(lambda: load_test_set(config, on, reporter.loading, data_dir, request.other))
    samples = trained.other_samples(dataset)
    group.compare_data(Data(dataset, samples, None, samples).contents)
    return dataset, samples, warn_of_seen(trained, on, samples, reporter) if group.leads else None


def _record(
    trained: Trained, request: EvaluationRequest, evaluation: Evaluation, shared_count: int | None
) -> dict[str, Any]:
    config, inputs = trained.settings, trained.task.inputs
    name = request.on or (config.test_on if request.split == "test" else "") or config.dataset
    record: dict[str, Any] = {"step": trained.info["step"], "dataset": name, **evaluation.record(request.split)}
    if not inputs.sequences:
        record |= {"confusion": evaluation.confusion.tolist(), "classes": list(inputs.classes)}
    if evaluation.timing is not None:
        record["by_neuron"] = evaluation.timing.record_by_neuron()
    if evaluation.energy is not None:
        record["energy"] = evaluation.energy.record()
    if trained.network.graph.delays:
        record["delays"] = _delays(trained)
    return record | ({} if shared_count is None else {"seen_in_training": shared_count})


def _delays(trained: Trained) -> dict[str, dict[str, Any]]:
    """Learned delays in whole steps, as the network computes with them, by the names of their parameters: how many
    there are, their quartiles from the smallest to the largest, and the largest number of steps allowed."""
    return {
        name: {
            "channels": len(delays := np.rint(trained.weights[name])),
            "quartiles": [float(np.quantile(delays, k / 4)) for k in range(5)],
            "maximum": maximum,
        }
        for name, maximum in trained.network.graph.delays.items()
    }
