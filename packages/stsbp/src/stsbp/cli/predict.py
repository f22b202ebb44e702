"""`stsbp predict`: classifies single files, or a stream of events."""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from stsbp_spec.encoders import EventBinning
from stsbp_spec.typing import Int64, UInt8

from stsbp.cli import COMMANDS, Globals
from stsbp.cli.common import (
    Choice,
    checkpoint_option,
    choose_backend,
    limit_threads,
    say,
    say_distances,
    say_warning,
    threads_option,
)
from stsbp.cli.streaming import UNITS, Asked, follow
from stsbp.datasets.fsdd import MOST as MOST_OF_SOUND
from stsbp.datasets.fsdd import hear
from stsbp.datasets.image_folder import MOST as MOST_OF_IMAGE
from stsbp.datasets.image_folder import SUFFIXES, read_image
from stsbp.datasets.nmnist import MOST as MOST_OF_RECORDING
from stsbp.datasets.nmnist import read_recording
from stsbp.errors import ConfigError, DataError, printable
from stsbp.files import GIGABYTE, read_regular, real
from stsbp.training.build import Inputs, decoders
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained

__all__ = ["command", "read_input"]

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MOST_AXES = 8
_MOST = {".npy": GIGABYTE, ".bin": MOST_OF_RECORDING, ".wav": MOST_OF_SOUND}


@click.command("predict", short_help=COMMANDS["predict"])
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE...]")
@checkpoint_option()
@click.option(
    "--draw",
    type=click.Path(path_type=Path),
    metavar="HTML",
    help="Write an HTML page that shows the input, the output spikes, the distances and the membrane potentials of "
    "each file.",
)
@threads_option("Number of processor threads.  [default: that of the run]")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one line of JSON for each file, or for each step of a stream."
)
@click.option(
    "--stream",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Read events from FILE and print spikes immediately. Without FILE, read standard input.",
)
@click.option(
    "--time-unit",
    type=Choice(list(UNITS)),
    help="Unit of time in a stream.  [default: us (microseconds) if the run was trained on recordings, otherwise step]",
)
@click.option("--from-first", is_flag=True, help="Start a stream at the time of its first event instead of at time 0.")
@click.option(
    "--clock",
    is_flag=True,
    help="End each step of a stream when the time of the step is over, even if no later event has arrived.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Number of steps of a stream. If the events end earlier, the remaining steps have no input.  [default: for a "
    "recording (.bin), the steps of the run; for lines of text, all steps up to the last event, but at least the steps "
    "of the run; if the run was trained with --own-lengths, up to the last event in both cases]",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Print the class and the timings after every STEPS steps of a stream.",
)
@click.pass_obj
def command(
    options: Globals,
    /,
    run: Path,
    files: tuple[Path, ...],
    checkpoint: str,
    draw: Path | None,
    threads: int | None,
    as_json: bool,
    stream: str | None,
    **of_stream: Any,
) -> None:
    """Classify files with the network in the folder RUN, or process a stream of events.

    A FILE is one of these:

    \b
    - an image (.jpg, .png, .bmp), resized if the network needs square images;
    - a recording in the format of N-MNIST (.bin);
    - a sound like those in the data set fsdd (.wav);
    - a numpy array of uint8 (.npy).

    An array is an image [C, H, W] or [H, W], event frames [T, C, H, W], or spike trains [T, N]. Frames and spike trains
    may have fewer steps than the training samples.

    For each FILE, the command prints two classes: the class whose label sequence is nearest to the output spikes, and
    the class of the output neuron with the most spikes. The command also prints the distance between the output spikes
    and the label sequence of every class. If labels are spike trains, the command instead prints the steps at which
    each output neuron spikes.

    --stream reads lines of text, or a recording (.bin). Each line of text is one event. For a network that reads camera
    events, a line is t x y p (time, column, row and polarity). For a network that reads spike trains, a line is t n
    (time and neuron). The output spikes of a step are printed as soon as an event of a later step arrives. At the end
    of the stream, the command prints the class and the timings: the latency and the computing time of steps, and the
    number of steps per second.
    """
    if stream is not None:
        _follow(options, run, checkpoint, threads, files, draw, Asked(stream, as_json=as_json, **of_stream))
        return
    if not files:
        raise click.UsageError("Missing argument 'FILE...', or the option '--stream'.")
    if given := [name for name, value in of_stream.items() if value]:
        listed = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"{listed}: only for a stream; give --stream as well")
    if draw is not None and any(real(draw) == real(path) for path in files):
        raise ConfigError(f"--draw {draw} would replace the file that it reads; choose another name")
    if draw is not None:
        # Imported here, like the modules below, because only this option needs it.
        from stsbp.report.page import PAGE

        PAGE.place(draw)
    folder = RunFolder(run)
    config = folder.read_config()
    limit_threads(config.threads if threads is None else threads)
    trained = load_trained(folder, checkpoint, choose_backend(options), warn=say_warning)
    inputs = trained.task.inputs
    samples = [read_input(path, inputs, config.binning, config.own_lengths) for path in files]
    batch, lengths = _batch(samples, inputs, config.steps)
    if draw is not None:
        from stsbp.report.collect import look
        from stsbp.report.page import page, samples_section, threshold_of

        seen = look(trained.task, trained.state, [path.name for path in files], batch, lengths=lengths)
        names = inputs.classes or [str(n) for n in range(inputs.outputs)]
        threshold = threshold_of(trained.task.network)
        title = f"Read by the network in {run.name}"
        section = samples_section(title, seen, names, threshold, of_classes=not inputs.sequences)
        PAGE.write(draw, page(title, [section]).encode())
    found = trained.predict(batch, lengths)
    if found.distances is None:
        for path, trains in zip(files, found.sequences, strict=True):
            if as_json:
                click.echo(json.dumps({"file": str(path), "spikes": trains}))
            else:
                lines = (f"  {neuron:>4}  {' '.join(map(str, times)) or '-'}" for neuron, times in enumerate(trains))
                say("\n".join([f"{printable(str(path))}: steps at which each output neuron spikes", *lines]))
        return
    for sample, path in enumerate(files):
        record = found.record(sample)
        if as_json:
            click.echo(json.dumps({"file": str(path), **record}))
            continue
        read, by_count = printable(record["class"]), printable(record["class_spike_count"])
        say(f"{printable(str(path))}: {read} (by {decoders(trained.network.has_readout)[1]} {by_count})")
        say_distances(found.names, found.distances[sample])


def _follow(
    options: Globals,
    run: Path,
    checkpoint: str,
    threads: int | None,
    files: tuple[Path, ...],
    draw: Path | None,
    asked: Asked,
) -> None:
    if files or draw is not None:
        raise ConfigError("--stream cannot be combined with FILEs or --draw; give only one of them")
    folder = RunFolder(run)
    config = folder.read_config()
    limit_threads(config.threads if threads is None else threads)
    code = follow(load_trained(folder, checkpoint, choose_backend(options), warn=say_warning), asked)
    if code:
        click.get_current_context().exit(code)


def _batch(samples: list[UInt8], inputs: Inputs, steps: int) -> tuple[UInt8, Int64 | None]:
    """Inputs in the form that the network reads; and the steps of each sample if one has fewer than `steps`."""
    if inputs.coding == "direct":
        return np.stack(samples), None
    lengths = np.array([len(sample) for sample in samples])
    batch = np.zeros((steps, len(samples), *inputs.shape), np.uint8)
    for b, sample in enumerate(samples):
        batch[: len(sample), b] = sample
    return batch, None if (lengths == steps).all() else lengths


def read_input(path: Path, inputs: Inputs, binning: EventBinning, own_lengths: bool = False) -> UInt8:
    """The input of one file, uint8: an image `[C, H, W]`, or frames of at most `T` steps, `[..., C, H, W]`.

    With `own_lengths`, the frames of a recording end with the recording.

    Raises:
        DataError: the file cannot be read, or does not fit the network.
    """
    events = inputs.coding == "events"
    expected = (binning.steps, *inputs.shape) if events else inputs.shape
    kind = path.suffix.lower()
    try:
        content = read_regular(path, _MOST.get(kind, MOST_OF_IMAGE))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if kind == ".npy":
        sample = _array(content, path)
        if not events and sample.shape == inputs.shape[1:] and inputs.shape[0] == 1:
            sample = sample[None]
    elif kind == ".bin" and events and len(inputs.shape) == 3:
        polarities, height, width = inputs.shape
        fitting = replace(binning, polarities=polarities, height=height, width=width)
        recording = read_recording(content, path)
        sample = fitting.frames(*recording)[: fitting.length(recording[-1]) if own_lengths else None]
    elif kind == ".wav" and events and len(inputs.shape) == 1:
        sample = hear(content, path, inputs.shape[0], binning, own_lengths)
    elif kind in SUFFIXES and not events and len(inputs.shape) == 3:
        channels, height, width = inputs.shape
        sample = read_image(
            content, path, channels=3 if channels == 3 else None, size=height if height == width else None
        )
    else:
        recordings = ".bin (N-MNIST) or " if len(inputs.shape) == 3 else ".wav (sounds, as fsdd) or "
        wanted = f"{recordings}.npy" if events else f"{', '.join(SUFFIXES)} or .npy"
        raise DataError(
            f"{path}: the network reads {'events' if events else 'images'}, so the file must end in {wanted}"
        )
    fewer = events and sample.shape[1:] == inputs.shape and 0 < len(sample) < binning.steps
    if sample.shape != expected and not fewer:
        axes = ("[T, C, H, W]" if len(inputs.shape) == 3 else "[T, N]") if events else "[C, H, W]"
        raise DataError(f"{path} has shape {list(sample.shape)}, but the network reads {axes} = {list(expected)}")
    return sample


def _array(content: bytes, path: Path) -> UInt8:
    """The array of a .npy file. Its header is checked before use, and nothing is unpickled."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"it has version {version[0]}.{version[1]} of the format")
        # numpy warns about files that Python 2 wrote.
        with warnings.catch_warnings(action="ignore"):
            shape, fortran, dtype = _HEADERS[version](file)
        if any(type(n) is not int for n in shape):
            raise ValueError(f"its shape is {shape}")
        count = math.prod(shape)
    except Exception as error:
        # numpy evaluates the header as Python text, so a forged one can raise almost any error.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} is not a numpy array: {reason}") from error
    if dtype != np.uint8:
        raise DataError(f"{path} must hold uint8 values, got {dtype}")
    data = np.frombuffer(content, dtype=np.uint8, offset=file.tell())
    with contextlib.suppress(ValueError):
        if min(shape, default=0) >= 0 and count == data.size and len(shape) <= _MOST_AXES:
            # If one number is 0, the others may be larger than numpy's limit.
            return data.reshape(shape, order="F" if fortran else "C")
    raise DataError(f"{path} is not a numpy array: its header does not fit the {data.size} bytes that follow it")
