"""`stsbp evaluate`: evaluates a trained network on a split of its data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
from stsbp_spec.networks.spec import NetworkSpec

from stsbp.cli import COMMANDS, Globals, PathName
from stsbp.cli.common import (
    Finite,
    batch_size_option,
    checkpoint_option,
    choose_backend,
    meeting,
    processes,
    say,
    say_warning,
    split_option,
    threads_option,
)
from stsbp.cli.energy import energy_table_option
from stsbp.cli.settings import complete_data_set
from stsbp.cli.spike_times import Tolerances, spike_times_text
from stsbp.energy.stored import store_energy
from stsbp.energy.text import energy_text, neurobench_text
from stsbp.errors import printable
from stsbp.hub.source import Source
from stsbp.measures.matching import TOLERANCES, within
from stsbp.processes.group import join
from stsbp.threads import limit_threads
from stsbp.training.build import TOLERANCE, decoders
from stsbp.training.evaluate import Evaluation
from stsbp.training.evaluate_run import EvaluationRequest, evaluate_run
from stsbp.training.progress import group_reporter
from stsbp.training.regression_text import errors_table
from stsbp.training.timing import Measuring

__all__ = ["command"]

_MOST_SHOWN = 200
"""Largest number of classes whose confusion matrix is printed for people."""


@click.command("evaluate", short_help=COMMANDS["evaluate"])
@click.argument("run", type=PathName())
@checkpoint_option()
@split_option()
@click.option("--data-dir", help="Folder of the data set.  [default: the folder that the run used]")
@click.option(
    "--on",
    metavar="DATASET",
    help="Test on the test set of another data set, or on all its samples if it has no test set.",
    shell_complete=complete_data_set,
)
@batch_size_option
@threads_option(
    "Number of processor threads.  [default: that of the run; with several processes, the number that their launcher "
    "sets]"
)
@click.option(
    "--tolerance",
    type=click.IntRange(0, 10**9),
    help=f"Largest distance in steps at which an output spike matches a target spike.  [default: {TOLERANCE}]",
)
@click.option(
    "--tolerances",
    type=Tolerances(),
    help="Tolerances in steps of the table of spike times. Timing errors are measured up to the largest one.  "
    f"[default: {','.join(map(str, TOLERANCES))}]",
)
@click.option(
    "--cost",
    type=Finite(0),
    help=f"Cost of moving a spike by one step in the Victor-Purpura distance.  [default: {Measuring.cost:g}]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="Seed with which targets are shuffled between samples, for the chance level.  [default: 0]",
)
@click.option(
    "--energy",
    is_flag=True,
    help="Count the operations of each layer, and estimate their energy. The network then computes each sample twice. "
    "The result is also stored in the folder RUN, where compare and report read it.",
)
@energy_table_option("Energy of the operations that --energy counts.")
@click.option(
    "--neurobench",
    is_flag=True,
    help="Also run the harness of NeuroBench, and show its figures beside those of stsbp. This needs "
    'pip install "stsbp[neurobench]".',
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@processes
@click.pass_obj
def command(
    options: Globals,
    run: str,
    checkpoint: str,
    split: str,
    data_dir: str | None,
    on: str | None,
    batch_size: int | None,
    threads: int | None,
    tolerance: int | None,
    tolerances: tuple[int, ...] | None,
    cost: float | None,
    seed: int | None,
    energy: bool,
    energy_table: str | None,
    neurobench: bool,
    as_json: bool,
    processes: int | None,
    rank_timeout: float,
) -> None:
    """Evaluate the network in the folder RUN.

    RUN may also be model:NAME, one of the models that `stsbp models` lists; hub:FOLDER, a folder that `stsbp export
    --to hub` wrote; or hub:OWNER/NAME@COMMIT, a commit of a repository of the Hugging Face Hub.

    The command prints the loss and the spike rates. If labels are classes, the command also prints the confusion
    matrix, and one accuracy for each of two rules that choose the class.

    If targets are real numbers, the command prints the mean squared error, R2 and sMAPE beside those of two simple
    predictions: the mean of the targets, and the target of the step before. If the data set is a series, such as
    mackey-glass, the network also continues it on its own, with its predictions as inputs.

    Networks with a readout have no output spikes. For other networks, the command also prints how well the output
    spikes follow the target spikes. Precision, recall and F1 show how many output spikes match target spikes. The
    command also prints timing errors, the distances of van Rossum, Hamming and Victor-Purpura, and the number of steps
    until the first right spike. Beside them stand the values by chance: those for the targets of other samples.
    """
    request = EvaluationRequest(
        split,
        on,
        data_dir,
        batch_size=batch_size,
        tolerance=tolerance,
        tolerances=tolerances,
        cost=cost,
        seed=seed,
        energy=energy,
        energy_table=energy_table,
        neurobench=neurobench,
    )
    source = Source.of(run, checkpoint)
    config, name = source.settings, run if source.run is None else str(source.run.path)
    request.check(config)
    if on is None:
        source.check_data("name the samples with --on")
    rendezvous = meeting(processes, rank_timeout, threads or 0)
    # Several processes share the cores that their launcher divided among them.
    limit_threads(config.threads if threads is None and rendezvous is None else threads or 0)
    backend = choose_backend(options, rendezvous)
    with join(backend, rendezvous, rank_timeout) as group:
        options_of_command = {
            "run": name,
            "checkpoint": checkpoint,
            "split": split,
            "on": on,
            "tolerance": tolerance,
            "tolerances": tolerances,
            "cost": cost,
            "seed": seed,
            "energy": energy,
            "neurobench": neurobench,
        }
        group.compare_settings(
            {**options_of_command, "batch_size": batch_size or config.batch_size, "config": config.digest()}
        )
        trained = source.trained(backend, say_warning, group)
        group.compare_settings({"sha256": trained.info["sha256"]})
        evaluated = evaluate_run(trained, request, group_reporter(group))
    if not group.leads:
        return
    if energy and on is None and source.run is not None:
        store_energy(source.run.path, evaluated.record, trained.info["sha256"], say_warning)
    if as_json:
        click.echo(json.dumps({"run": name, "checkpoint": checkpoint, **evaluated.record}))
        return
    title, inputs = split if on is None else on, trained.task.inputs
    evaluation, tolerance = evaluated.evaluation, evaluated.tolerance
    if inputs.real_targets:
        say(_regression_text(evaluation, title))
    elif inputs.sequences:
        say(_sequence_text(evaluation, title, tolerance))
    else:
        say(_text(evaluation, title, inputs.classes, trained.network, tolerance))
    if evaluated.rollout is not None:
        say("\n".join(evaluated.rollout.text()))
    if "delays" in evaluated.record:
        say("\n".join(_delays(evaluated.record["delays"])))
    if neurobench:
        say("\n".join(neurobench_text(evaluated.record["neurobench"])))


def _sequence_text(evaluation: Evaluation, split: str, tolerance: int) -> str:
    means = evaluation.means()
    return "\n".join(
        [
            f"{split}: {means['samples']} samples, {means['samples'] / max(1e-9, evaluation.sums.seconds):.0f} a "
            "second",
            *_followed(means, evaluation.sums.sequence, tolerance),
            f"loss        {means['loss']:.4f}",
            *_spike_times(evaluation, means),
            *_rates(means),
            *_energy(evaluation),
        ]
    )


def _regression_text(evaluation: Evaluation, split: str) -> str:
    means = evaluation.means()
    return "\n".join(
        [
            f"{split}: {means['samples']} samples, {means['samples'] / max(1e-9, evaluation.sums.seconds):.0f} a "
            "second",
            *errors_table(means["regression"]),
            f"loss {means['loss']:.6g}",
            *_rates(means),
        ]
    )


def _spike_times(evaluation: Evaluation, means: Mapping[str, Any]) -> list[str]:
    if evaluation.timing is None:
        return []
    return spike_times_text(means, evaluation.timing.record_by_neuron())


def _followed(means: dict[str, Any], sums: Mapping[str, float], tolerance: int) -> list[str]:
    """Text on how well the outputs match their target spike trains."""
    spikes = f"{sums['matched']:.0f} of {sums['spikes']:.0f} output and {sums['targets']:.0f} target spikes match"
    return [
        f"precision   {means['precision']:.2%}  spike times {within(tolerance)}, {spikes}",
        f"recall      {means['recall']:.2%}",
        f"F1          {means['f1']:.2%}  {within(tolerance)}",
        f"van Rossum  {means['van_rossum']:.4f}  a sample",
        f"Hamming     {means['hamming']:.4f}  a sample",
    ]


def _energy(evaluation: Evaluation) -> list[str]:
    return [] if evaluation.energy is None else energy_text(evaluation.energy.record())


def _rates(means: dict[str, Any]) -> list[str]:
    width = max(map(len, means["rates"]))
    rows = (f"  {name:<{width}}  {rate:.4f}" for name, rate in means["rates"].items())
    return ["spikes per neuron and step:", *rows]


def _delays(delays: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for the learned delays of each layer."""
    rows = [["", "channels", "smallest", "25 %", "median", "75 %", "largest", "allowed"]]
    for name, record in delays.items():
        numbers = [record["channels"], *record["quartiles"], record["maximum"]]
        rows.append([name, *(f"{number:,.6g}" for number in numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  " + "  ".join([f"{name:<{widths[0]}}", *map(str.rjust, cells, widths[1:])]).rstrip() for name, *cells in rows
    )
    return ["learned delays in whole steps:", *lines]


def _text(evaluation: Evaluation, split: str, classes: tuple[str, ...], network: NetworkSpec, tolerance: int) -> str:
    means, (rule, count_rule) = evaluation.means(), decoders(network.has_readout)
    names = [name if len(name) <= 10 else name[:9] + "." for name in map(printable, classes)]
    width = max(5, *(len(name) for name in names), len(str(int(evaluation.confusion.max()))))
    text_lines = [
        f"{split}: {means['samples']} samples, {means['samples'] / max(1e-9, evaluation.sums.seconds):.0f} a second",
        f"accuracy  {means['accuracy']:.2%}  {rule}",
        f"          {means['accuracy_spike_count']:.2%}  {count_rule}",
        f"loss      {means['loss']:.4f}",
    ]
    if evaluation.followed:
        text_lines.append("outputs and the label sequences of their classes:")
        followed = [*_followed(means, evaluation.followed, tolerance), *_spike_times(evaluation, means)]
        text_lines += (f"  {text_line}" for text_line in followed)
    text_lines += [*_rates(means), *_energy(evaluation)]
    if len(classes) > _MOST_SHOWN:
        return "\n".join([*text_lines, f"The confusion matrix of {len(classes):,} classes is in the output of --json."])
    text_lines += [
        f"confusion matrix (row: true class, column: {rule}, last column: recall):",
        "  " + " " * width + "".join(f" {name:>{width}}" for name in names),
    ]
    for k, (name, row) in enumerate(zip(names, evaluation.confusion.tolist(), strict=True)):
        cells = "".join(f" {count or '.':>{width}}" for count in row)
        recall = f"{row[k] / sum(row):.1%}" if any(row) else "-"
        text_lines.append(f"  {name:>{width}}{cells}  {recall:>6}")
    return "\n".join(text_lines)
