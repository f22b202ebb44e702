"""`stsbp predict`: classifies single files, or a stream of events."""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from stsbp_spec.errors import SpecError
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.models.encoders.packed import unpacked
from stsbp_spec.typing import AnyArray, Int64, UInt8

from stsbp.cli import COMMANDS, Globals, PathName
from stsbp.cli.common import (
    Choice,
    OptionalPaths,
    checkpoint_option,
    choose_backend,
    no_events,
    say,
    say_distances,
    say_warning,
    split_option,
    threads_option,
)
from stsbp.cli.streaming import UNITS, StreamOptions, stream_events
from stsbp.datasets.fsdd import MAX_BYTES as MAX_SOUND_BYTES
from stsbp.datasets.fsdd import digit_of, encode_sounds
from stsbp.datasets.fsdd import read_recording as read_sound
from stsbp.datasets.image_folder import MAX_BYTES as MAX_IMAGE_BYTES
from stsbp.datasets.image_folder import SUFFIXES, read_image
from stsbp.datasets.nmnist import MAX_BYTES as MAX_RECORDING_BYTES
from stsbp.datasets.nmnist import read_recording
from stsbp.datasets.registry import info_of, is_known
from stsbp.errors import ConfigError, DataError, printable
from stsbp.files import GIGABYTE, read_regular, real
from stsbp.hub.source import Source
from stsbp.threads import limit_threads
from stsbp.training.build import Inputs, decoders, load_data
from stsbp.training.progress import choose_reporter
from stsbp.training.trained import Predicted, Trained

__all__ = ["command", "read_inputs"]

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MOST_AXES = 8
_MAX_BYTES = {".npy": GIGABYTE, ".bin": MAX_RECORDING_BYTES, ".wav": MAX_SOUND_BYTES}


@click.command("predict", cls=OptionalPaths, short_help=COMMANDS["predict"])
@click.argument("run", type=PathName())
@click.argument("files", nargs=-1, type=PathName(path_type=Path), metavar="[FILE...]")
@click.option(
    "--sample",
    "numbers",
    type=click.IntRange(0),
    multiple=True,
    metavar="N",
    help="Also classify sample N of the data set of the run, counted from 0. You can repeat this option.",
)
@split_option("Split of the data set to which --sample refers.")
@click.option("--data-dir", help="Folder of the data set, for --sample.  [default: the folder that the run used]")
@checkpoint_option()
@click.option(
    "--draw",
    type=PathName(path_type=Path),
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
    run: str,
    files: tuple[Path, ...],
    numbers: tuple[int, ...],
    split: str,
    data_dir: str | None,
    checkpoint: str,
    draw: Path | None,
    threads: int | None,
    as_json: bool,
    stream: str | None,
    **of_stream: Any,
) -> None:
    """Classify files or samples with the network in the folder RUN, or process a stream of events.

    RUN may also be model:NAME or hub:..., as for stsbp evaluate.

    A FILE is one of these:

    \b
    - an image (.jpg, .png, .bmp), resized if the network needs square images;
    - a recording in the format of N-MNIST (.bin), if the network was trained on recordings of a camera;
    - a sound like those in the data set fsdd (.wav), if the network was trained on fsdd;
    - a numpy array of uint8, or of bool for frames and spike trains (.npy).

    An array is an image [C, H, W] or [H, W], event frames [T, C, H, W], or spike trains [T, N]. Frames and spike trains
    may have fewer steps than the training samples.

    For each FILE, the command prints two classes: the class whose label sequence is nearest to the output spikes, and
    the class of the output neuron with the most spikes. The command also prints the distance between the output spikes
    and the label sequence of every class. If labels are spike trains, the command instead prints the steps at which
    each output neuron spikes.

    The command knows the class of a FILE if the folder of the FILE has the name of a class, as in 3/one.png, or if the
    name of the FILE is like those of fsdd, as in 3_ada_7.wav. It also prints how many of these classes it predicted.

    --stream reads lines of text, or a recording (.bin). Each line of text is one event. For a network that reads camera
    events, a line is t x y p (time, column, row and polarity). For a network that reads spike trains, a line is t n
    (time and neuron). The output spikes of a step are printed as soon as an event of a later step arrives. At the end
    of the stream, the command prints the class and the timings: the latency and the computing time of steps, and the
    number of steps per second.
    """
    if stream is not None:
        if numbers:
            raise ConfigError("--stream cannot be combined with --sample; give only one of them")
        _predict_stream(
            options, run, checkpoint, threads, files, draw, StreamOptions(stream, as_json=as_json, **of_stream)
        )
        return
    if not numbers and (data_dir is not None or split != "test"):
        raise ConfigError("--split and --data-dir are for samples of the data set; give --sample as well")
    if not files and not numbers:
        raise click.UsageError("Missing argument 'FILE...', or the option '--stream' or '--sample'.")
    if stream_options := [name for name, value in of_stream.items() if value]:
        listed = ", ".join("--" + name.replace("_", "-") for name in stream_options)
        raise ConfigError(f"{listed}: only for a stream; give --stream as well")
    if draw is not None and any(real(draw) == real(path) for path in files):
        raise ConfigError(f"--draw {draw} would replace the file that it reads; choose another name")
    if draw is not None:
        # Imported here, like the modules below, because only this option needs it.
        from stsbp.report.page import PAGE

        PAGE.target_path(draw)
    source = Source.of(run, checkpoint)
    config = source.settings
    if numbers:
        source.check_data("name files instead of --sample")
    limit_threads(config.threads if threads is None else threads)
    trained = source.trained(choose_backend(options), say_warning)
    inputs = trained.task.inputs
    arrays = read_inputs(files, inputs, config.binning, config.dataset, config.own_lengths)
    for path, array in zip(files, arrays, strict=True):
        if path.suffix.lower() == ".bin" and not array.any():
            say_warning(f"{path}: {no_events(config.binning)}")
    samples = [
        _InputSample({"file": str(path)}, str(path), x, _label(path, inputs.classes))
        for path, x in zip(files, arrays, strict=True)
    ]
    samples += _of_data_set(trained, split, numbers, data_dir) if numbers else []
    batch, lengths = _batch([sample.inputs for sample in samples], inputs, config.steps)
    if draw is not None:
        from stsbp.report.collect import run_samples
        from stsbp.report.page import page
        from stsbp.report.samples import samples_section

        titles = [path.name for path in files] + [sample.title for sample in samples[len(files) :]]
        views = run_samples(trained.task, trained.state, titles, batch, lengths=lengths)
        names = inputs.classes or [str(n) for n in range(inputs.outputs)]
        title = f"Read by the network in {source.path.name}"
        section = samples_section(title, views, names, trained.task.network, of_classes=not inputs.sequences)
        PAGE.write(draw, page("samples.html", title=title, samples=section).encode())
    predicted = trained.predict(batch, lengths)
    if inputs.real_targets:
        shown = ("output of each neuron by step", "its target")
        _say_sequences(samples, predicted.values, "outputs", shown, _values_text, as_json=as_json)
    elif inputs.sequences:
        shown = ("steps at which each output neuron spikes", "at which it should spike")
        _say_sequences(samples, predicted.sequences, "spikes", shown, _steps_text, as_json=as_json)
    else:
        _say_classes(samples, predicted, decoders(trained.network.has_readout), as_json=as_json)


class _InputSample(NamedTuple):
    """A sample to predict.

    Attributes:
        origin: where it comes from, as JSON.
        title: the same as text.
        inputs: an image `[C, H, W]`, or frames of at most `T` steps, `[..., C, H, W]`.
        label: name of its class; None: not known.
        targets: steps at which each output neuron should spike, or its target at each step; None: not known.
    """

    origin: dict[str, Any]
    title: str
    inputs: UInt8
    label: str | None = None
    targets: list[list[Any]] | None = None


def _label(path: Path, classes: Sequence[str]) -> str | None:
    """The class of a file according to its name or its folder; None if neither says it."""
    return next((name for name in (digit_of(path), path.parent.name) if name in classes), None)


def _of_data_set(trained: Trained, split: str, numbers: Sequence[int], data_dir: str | None) -> list[_InputSample]:
    """Samples of the data set of the run.

    Raises:
        ConfigError: the split has fewer samples, or the data are not those of the run.
    """
    reporter = choose_reporter()
    try:
        chosen = trained.samples(load_data(trained.settings, reporter.loading, data_dir, True), split)
    finally:
        reporter.close()
    if max(numbers) >= len(chosen):
        raise ConfigError(f"--sample {max(numbers)}: the {split} split has the samples 0 to {len(chosen) - 1}")
    batch, labels = trained.task.batch(chosen, np.array(numbers))
    inputs, events = unpacked(batch.inputs), trained.network.coding == "events"
    lengths = [None] * len(numbers) if batch.lengths is None else batch.lengths.tolist()
    samples = []
    for b, (number, length) in enumerate(zip(numbers, lengths, strict=True)):
        x = inputs[:length, b] if events else inputs[b]
        origin, title = {"split": split, "sample": number}, f"{split} sample {number}"
        if trained.task.inputs.sequences:
            trains = batch.targets[:length, b].T
            real = trained.task.inputs.real_targets
            targets = trains.tolist() if real else [np.flatnonzero(train).tolist() for train in trains]
            samples.append(_InputSample(origin, title, x, targets=targets))
        else:
            samples.append(_InputSample(origin, title, x, trained.names[labels[b]]))
    return samples


def _say_sequences(
    samples: Sequence[_InputSample],
    outputs: Sequence[Sequence[Sequence[Any]]],
    key: str,
    titles: tuple[str, str],
    text: Callable[[Sequence[Any]], str],
    *,
    as_json: bool,
) -> None:
    """Print the outputs of each sample.

    Args:
        samples: the samples.
        outputs: a list for each neuron of each sample.
        key: name of the outputs in JSON.
        titles: what they are, and what the targets are.
        text: a list as text.
        as_json: whether JSON is printed.
    """
    for sample, neurons in zip(samples, outputs, strict=True):
        targets = {} if sample.targets is None else {"targets": sample.targets}
        if as_json:
            click.echo(json.dumps({**sample.origin, key: neurons, **targets}))
            continue
        text_lines = [f"{printable(sample.title)}: {titles[0]}"]
        text_lines[0] += f", and {titles[1]}" if targets else ""
        for neuron, numbers in enumerate(neurons):
            text_lines.append(f"  {neuron:>4}  {text(numbers)}")
            text_lines += [f"   and  {text(sample.targets[neuron])}"] if sample.targets is not None else []
        say("\n".join(text_lines))


def _values_text(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _steps_text(times: Sequence[int]) -> str:
    return " ".join(map(str, times)) or "-"


def _say_classes(
    samples: Sequence[_InputSample], predicted: Predicted, rules: tuple[str, str], *, as_json: bool
) -> None:
    """Print the class of each sample by both `rules` of `decoders`, and the accuracies if classes are known."""
    assert predicted.distances is not None
    correct = [0, 0]
    for b, sample in enumerate(samples):
        record = predicted.record(b)
        class_name, count_name = record["class"], record["class_spike_count"]
        if sample.label is not None:
            record["label"] = sample.label
            correct = [n + (name == sample.label) for n, name in zip(correct, (class_name, count_name), strict=True)]
        if as_json:
            click.echo(json.dumps({**sample.origin, **record}))
            continue
        label_text = "" if sample.label is None else f", label {printable(sample.label)}"
        say(f"{printable(sample.title)}: {printable(class_name)} (by {rules[1]} {printable(count_name)}){label_text}")
        say_distances(predicted.names, predicted.distances[b])
    labelled = sum(sample.label is not None for sample in samples)
    if labelled and not as_json:
        shares = ", ".join(f"{n / labelled:.2%} ({rule})" for n, rule in zip(correct, rules, strict=True))
        say(f"accuracy {shares} of the {labelled} samples whose class is known, by folder, name or data set")


def _predict_stream(
    options: Globals,
    run: str,
    checkpoint: str,
    threads: int | None,
    files: tuple[Path, ...],
    draw: Path | None,
    stream_options: StreamOptions,
) -> None:
    if files or draw is not None:
        raise ConfigError("--stream cannot be combined with FILEs or --draw; give only one of them")
    source = Source.of(run, checkpoint)
    limit_threads(source.settings.threads if threads is None else threads)
    code = stream_events(source.trained(choose_backend(options), say_warning), stream_options)
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


def read_inputs(
    paths: Sequence[Path], inputs: Inputs, binning: EventBinning, trained_on: str, own_lengths: bool = False
) -> list[UInt8]:
    """The inputs of files, uint8: images `[C, H, W]`, or frames of at most `T` steps, `[..., C, H, W]`.

    With `own_lengths`, the frames of a recording end with the recording. `trained_on` is the data set of the network,
    which must be one of sounds if a file is a sound, and one of recordings if a file is a recording.

    Raises:
        DataError: a file cannot be read, or does not fit the network.
    """
    samples: dict[int, AnyArray] = {}
    sounds: dict[int, AnyArray] = {}
    suffixes = _suffixes(inputs, trained_on)
    for k, path in enumerate(paths):
        suffix = path.suffix.lower()
        try:
            content = read_regular(path, _MAX_BYTES.get(suffix, MAX_IMAGE_BYTES))
        except OSError as error:
            remedy = (
                f"; give its files, for example {path}/*, or read it as a data set with stsbp evaluate RUN --on DATASET"
                if path.is_dir()
                else ""
            )
            raise DataError(f"cannot read {path}: {error.strerror or error}{remedy}") from error
        if suffix not in suffixes:
            raise _unreadable(path, inputs, suffixes, trained_on)
        if suffix == ".wav":
            sounds[k] = read_sound(content, path)
        else:
            samples[k] = _read_one(content, path, inputs, binning, own_lengths)
    if sounds:
        # The ear hears several sounds in about the time of one.
        spikes = encode_sounds(list(sounds.values()), inputs.shape[0], binning, own_lengths)
        samples.update(zip(sounds, spikes, strict=True))
    for k, path in enumerate(paths):
        _check_sample(samples[k], path, inputs, binning)
    return [samples[k] for k in range(len(paths))]


def _suffixes(inputs: Inputs, trained_on: str) -> dict[str, str]:
    """The ends of the names of files that a network can read, and what such files are, if the end does not say it.

    The length of a step is only known if the network was trained on recordings or sounds, and the neurons of a sound
    are places of the ear.
    """
    if inputs.coding == "direct":
        return dict.fromkeys([*SUFFIXES, ".npy"] if len(inputs.shape) == 3 else [".npy"], "")
    info = info_of(trained_on) if is_known(trained_on) else None
    camera, ear = len(inputs.shape) == 3, len(inputs.shape) == 1
    recordings = {".bin": "N-MNIST"} if camera and info is not None and info.recordings else {}
    sounds = {".wav": "sounds, as fsdd"} if ear and info is not None and info.sounds else {}
    return {**recordings, **sounds, ".npy": ""}


def _unreadable(path: Path, inputs: Inputs, suffixes: Mapping[str, str], trained_on: str) -> DataError:
    """The error for a file whose kind is none of `suffixes`."""
    suffix, camera = path.suffix.lower(), len(inputs.shape) == 3
    expected = {(".wav", False): "sounds as in fsdd", (".bin", True): "recordings of a camera"}.get((suffix, camera))
    if inputs.coding == "events" and expected is not None:
        input_form = "frames [T, C, H, W]" if camera else "spike trains [T, N]"
        reason = f"not on {expected};" if is_known(trained_on) else "which is not installed; install its package, or"
        return DataError(
            f"{path} is a {'recording' if camera else 'sound'}, but the network was trained on {trained_on}, "
            f"{reason} give {input_form} like those that it was trained on (.npy)"
        )
    *first_endings, last_ending = [
        f"{ending} ({description})" if description else ending for ending, description in suffixes.items()
    ]
    endings_text = f"{', '.join(first_endings)} or {last_ending}" if first_endings else last_ending
    inputs_text = "events" if inputs.coding == "events" else "images"
    return DataError(f"{path}: the network reads {inputs_text}, so the file must end in {endings_text}")


def _read_one(content: bytes, path: Path, inputs: Inputs, binning: EventBinning, own_lengths: bool) -> UInt8:
    """The input in the content of an image, an array or a recording of a camera."""
    events, suffix = inputs.coding == "events", path.suffix.lower()
    if suffix == ".npy":
        sample = _array(content, path, spikes=events)
        return sample[None] if not events and (1, *sample.shape) == inputs.shape else sample
    if suffix == ".bin":
        fitted_binning = inputs.fitted(binning)
        recording = read_recording(content, path)
        try:
            return fitted_binning.frames(*recording)[: fitted_binning.length(recording[-1]) if own_lengths else None]
        except SpecError as error:
            raise DataError(f"{path}: {error}") from error
    channels, height, width = inputs.shape
    return read_image(content, path, channels=3 if channels == 3 else None, size=height if height == width else None)


def _check_sample(sample: UInt8, path: Path, inputs: Inputs, binning: EventBinning) -> None:
    """Raise `DataError` if the shape or the counts of an input do not fit the network."""
    events = inputs.coding == "events"
    expected = (binning.steps, *inputs.shape) if events else inputs.shape
    is_shorter = events and sample.shape[1:] == inputs.shape and 0 < len(sample) < binning.steps
    if sample.shape != expected and not is_shorter:
        axes = ("[T, C, H, W]" if len(inputs.shape) == 3 else "[T, N]") if events else "[C, H, W]"
        raise DataError(f"{path} has shape {list(sample.shape)}, but the network reads {axes} = {list(expected)}")
    if events and (largest_count := int(sample.max(initial=0))) > inputs.input_max:
        raise DataError(
            f"{path} has an entry of {largest_count}, but the network reads spike counts of at most "
            f"{inputs.input_max} for each step and neuron"
        )


def _array(content: bytes, path: Path, *, spikes: bool = False) -> UInt8:
    """The array of a .npy file. Its header is checked before use, and nothing is unpickled. `spikes` may be bool."""
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
        if "malformed node" in reason or reason.startswith("Cannot parse header"):
            # The message contains the address of an object, or all of the header.
            reason = "its header is not the description of an array"
        raise DataError(f"{path} is not a numpy array: {reason}") from error
    if dtype != np.uint8 and not (spikes and dtype == np.bool_):
        remedy = f"; convert {'spikes' if spikes else 'pixels from 0 to 255'} with .astype(np.uint8)"
        raise DataError(f"{path} must hold uint8 values, got {dtype}{remedy if dtype.kind in 'iuf' else ''}")
    data = np.frombuffer(content, dtype=np.uint8, offset=file.tell())
    with contextlib.suppress(ValueError):
        if min(shape, default=0) >= 0 and count == data.size and len(shape) <= _MOST_AXES:
            # If one number is 0, the others may be larger than numpy's limit.
            return data.reshape(shape, order="F" if fortran else "C")
    raise DataError(f"{path} is not a numpy array: its header does not fit the {data.size} bytes that follow it")
