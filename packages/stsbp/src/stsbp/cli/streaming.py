"""`stsbp predict --stream`: reads events and prints spikes, step by step."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import AnyArray

from stsbp.cli.common import no_events, say, say_distances, say_warning
from stsbp.cli.event_lines import Event, EventLines
from stsbp.cli.event_sources import EventSource, Pipe, RecordingSource, Stop
from stsbp.datasets.registry import info_of, is_known
from stsbp.errors import ConfigError, DataError, printable
from stsbp.interrupts import handled_by
from stsbp.training.build import decoders
from stsbp.training.trained import Predicted, Trained

__all__ = ["UNITS", "StreamOptions", "stream_events"]

UNITS = {"us": 0, "ms": 3, "s": 6, "step": 0}
"""Units of time, each as a power of ten in microseconds. `step` is a step of the network."""
_TOGETHER = 4096
"""Number of events that are collected before they are binned."""
_LONGEST_GAP = 2**20
"""Largest number of steps without an event. A larger gap is taken as a sign of another clock."""
_LONG_GAP = 10_000
"""Number of steps without an event after which a warning says how many are computed now. It is given once."""
_LONGEST_SILENT_START = 10_000
"""Largest number of steps before the first event with `--clock`. They are computed when this event arrives, and its
spikes wait for them. More steps are taken as a sign of a clock that does not start at 0."""
_KEPT = 10_000
"""Number of steps whose times are kept."""
_WARM_UP = 8
"""Number of steps after which backends have compiled their kernels."""


@dataclass(frozen=True)
class StreamOptions:
    """The options of a stream.

    Attributes:
        source: a file, or `-` for standard input.
        time_unit: one of `UNITS`; None: microseconds, or steps if the run's data are not recordings.
        from_first: whether time starts at the first event.
        clock: whether a step also ends when its time has passed.
        steps: number of steps; None: until the end of the source.
        every: number of steps after which class and timings are printed; None: only at the end.
        as_json: whether the lines are JSON.
    """

    source: str
    time_unit: str | None = None
    from_first: bool = False
    clock: bool = False
    steps: int | None = None
    every: int | None = None
    as_json: bool = False


class _Times:
    """Durations in seconds, one per step: quantiles of the last 10,000, and the largest of all."""

    def __init__(self) -> None:
        self._recent_seconds, self._largest = deque[float](maxlen=_KEPT), 0.0

    def add(self, seconds: float) -> None:
        self._recent_seconds.append(seconds)
        self._largest = max(self._largest, seconds)

    def quantiles(self) -> dict[str, float] | None:
        """The durations in milliseconds; None: there are none."""
        if not self._recent_seconds:
            return None
        median, p95 = np.quantile(np.array(self._recent_seconds), [0.5, 0.95]).tolist()
        values = {"median": median, "p95": p95, "max": self._largest}
        return {name: round(1000 * seconds, 3) for name, seconds in values.items()}


class _Live:
    """The steps of a stream. It is a `Sink` of events.

    Args:
        run: the network.
        binning: how events become frames.
        step_s: length of a step of the stream in seconds; None: time is counted in steps.
        asked: what to print, and when to end.
        limit: number of steps after which the stream ends; None: no limit.
        source: gives the location of an event for messages.
        stop: whether a signal arrived.
    """

    def __init__(
        self,
        run: Trained,
        binning: EventBinning,
        step_s: float | None,
        options: StreamOptions,
        limit: int | None,
        source: EventSource,
        stop: Stop,
    ) -> None:
        self._run, self._binning, self._step_s, self._options = run, binning, step_s, options
        self._limit, self._source, self._stop = limit, source, stop
        self._stream = run.stream()
        for _ in range(_WARM_UP):
            self._stream.step()
        self._stream.reset()
        self._shown = [printable(name) for name in run.names or map(str, range(run.network.outputs))]
        self._recent = deque[AnyArray](maxlen=run.settings.steps)
        # The current step: its frame, events that are not yet in the frame, and the time at which the last one was
        # read.
        self._frame = np.zeros(binning.shape, np.uint8)
        self._events: list[Event] = []
        self._read_at: float | None = None
        # The start of the stream, in its own time and in the time of this process.
        self._origin: int | None = None
        self._zero = 0.0
        self._latency, self._compute = _Times(), _Times()
        self._slow = self._late = 0
        self._warned_of_gap = False
        self._reported = -1
        self._started_at: float | None = None
        self._idle = 0.0

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return self._stream.steps

    @property
    def finished(self) -> bool:
        return self._stop.number != 0 or self.steps == self._limit

    @property
    def deadline(self) -> float | None:
        return None if self._origin is None or not self._options.clock else self._zero + self._end(self.steps) / 1e6

    def accept(self, event: Event, read_at: float) -> None:
        t, *address = event
        is_first = self._origin is None
        if self._origin is None:
            self._origin = t if self._options.from_first else 0
            self._zero = read_at - (t - self._origin) / 1e6
        t -= self._origin
        step = self._binning.step_of(t)
        if step - self.steps > _LONGEST_GAP:
            raise DataError(
                f"{self._source.location}: {step - self.steps:,} steps before this one have no events; "
                "choose another --time-unit, or count time --from-first"
            )
        if is_first and self._options.clock and step > _LONGEST_SILENT_START:
            raise DataError(
                f"{self._source.location}: {step:,} steps before the first event have no events, but --clock allows at "
                f"most {_LONGEST_SILENT_START:,}; count time --from-first"
            )
        if step - self.steps > _LONG_GAP and not self._warned_of_gap:
            self._warned_of_gap = True
            say_warning(
                f"{self._source.location}: {step - self.steps:,} steps before this one have no events and are computed "
                "now; if they are too many, choose another --time-unit, or count time --from-first"
            )
        while self.steps < step and not self.finished:
            self._end_step()
        if not self.finished:
            self._late += step < self.steps
            self._events.append((t, *address))
            self._read_at = read_at
            if len(self._events) == _TOGETHER:
                self._bin_events()

    def tick(self, now: float) -> None:
        while not self.finished and self.deadline is not None and now >= self.deadline:
            self._end_step()

    def waited(self, since: float, until: float) -> None:
        if self._started_at is None:
            self._started_at = until
        else:
            self._idle += until - since

    def close(self, min_steps: int) -> None:
        """Called after the last event. Ends the current step, adds silence up to `min_steps` steps, and prints the
        results."""
        if self._read_at is not None:
            min_steps = max(min_steps, self.steps + 1)
        while self.steps < min_steps and not self.finished:
            self._end_step()
        if self._reported != self.steps:
            self._report()

    def _report(self) -> None:
        """Print the class from the last steps, as many as in training, and the timings."""
        self._reported = self.steps
        timings, predicted = self._timings(), self._decoded()
        record = {} if predicted is None else predicted.record(0)
        if self._options.as_json:
            click.echo(json.dumps({"steps": self.steps, **record, **timings}))
            return
        if predicted is not None and predicted.distances is not None:
            rule, count_rule = decoders(self._run.network.has_readout)
            class_name, count_name = printable(record["class"]), printable(record["class_spike_count"])
            say(f"{class_name} by {rule}, {count_name} by {count_rule}, of the last {len(self._recent)} steps")
            say_distances(predicted.names, predicted.distances[0])
        click.echo(_timing_text(self.steps, self._step_s, timings))

    def _end_step(self) -> None:
        """Compute the current step, print its spikes, and begin the next frame."""
        number, begin = self.steps, time.perf_counter()
        self._bin_events()
        frame = self._frame.reshape(1, *self._run.network.input_shape)
        (output,) = self._stream.step(frame)
        self._compute.add(time.perf_counter() - begin)
        self._recent.append(output)
        self._print(number, output)
        printed = time.perf_counter()
        if self._read_at is not None:
            self._latency.add(printed - self._read_at)
        self._slow += self._step_s is not None and printed - begin > self._step_s
        self._frame[...] = 0
        self._read_at = None
        if self._options.every is not None and self.steps % self._options.every == 0:
            self._report()

    def _bin_events(self) -> None:
        """Add the events that wait to the current frame. Many at once take less time than one by one."""
        if self._events:
            t, *address = np.array(self._events, np.int64).T
            # A spike train has the form of one row of a picture.
            x, y, p = address if len(address) == 3 else (address[0], np.zeros_like(t), np.zeros_like(t))
            former_count = 0 if self._binning.binary else int(self._frame.sum())
            self._binning.add(self._frame, x, y, p, t)
            self._events.clear()
            if not self._binning.binary:
                self._check_counts(former_count + len(t))

    def _check_counts(self, events: int) -> None:
        """Raise `DataError` if the current frame, of this number of events, has a count that the network cannot
        read."""
        max_count = self._run.network.input_max
        # Frames hold counts up to 255. Without stabilisation, no event is dropped for another reason.
        is_cut = not self._binning.stabilise and int(self._frame.sum()) < events
        if is_cut or int(self._frame.max()) > max_count:
            raise DataError(
                f"{self._source.location}: more than {max_count} events of one neuron in step {self.steps}, but the "
                f"network reads counts of at most {max_count}"
            )

    def _end(self, step: int) -> int:
        """The first microsecond after a step."""
        assert self._binning.window_us is not None
        return -(-(step + 1) * self._binning.window_us // self._binning.steps)

    def _print(self, number: int, output: AnyArray) -> None:
        """Print the output `[N]` of the step `number`: the neurons that spiked, or the potentials of a readout."""
        readout = self._run.network.has_readout
        fired = [] if readout else np.flatnonzero(output).tolist()
        if self._options.as_json:
            record: dict[str, Any] = {"step": number}
            if self._step_s is not None:
                record["time_us"] = self._end(number)
            record |= {"potentials": output.tolist()} if readout else {"spikes": fired}
            if self._run.names and not readout:
                record["classes"] = [self._run.names[n] for n in fired]
            click.echo(json.dumps(record))
        elif readout or fired:
            time_text = "" if self._step_s is None else f"{self._end(number) / 1000:>14.3f} ms"
            say(f"{number:>6}{time_text}  {self._output_text(output, fired)}")

    def _output_text(self, output: AnyArray, fired: list[int]) -> str:
        """The neurons that spiked; for a readout, all outputs, or the class with the largest potential."""
        if not self._run.network.has_readout:
            return ", ".join(self._shown[n] for n in fired)
        if not self._run.names:
            return " ".join(f"{value:.4g}" for value in output.tolist())
        strongest = int(output.argmax())
        return f"{self._shown[strongest]} {output[strongest]:.3f}"

    def _decoded(self) -> Predicted | None:
        """The class from the last steps; None: there are no classes, or no steps."""
        if not self._recent or not self._run.names:
            return None
        return self._run.decode(np.stack(self._recent)[:, np.newaxis], self.steps - len(self._recent))

    def _timings(self) -> dict[str, Any]:
        """The timings so far, as JSON values. Time without anything to do does not count."""
        now = time.perf_counter()
        busy = max(1e-9, now - (now if self._started_at is None else self._started_at) - self._idle)
        timings: dict[str, Any] = {
            "latency_ms": self._latency.quantiles(),
            "compute_ms": self._compute.quantiles(),
            "steps_per_second": round(self.steps / busy, 1),
        }
        if self._step_s is not None:
            timings |= {"times_real_time": round(self.steps * self._step_s / busy, 2), "slow_steps": self._slow}
        return timings | {"late_events": self._late}


def _timing_text(steps: int, step_s: float | None, timings: dict[str, Any]) -> str:
    """The timings as lines of text."""
    if steps == 0:
        return "0 steps"
    text_lines = [f"{steps:,} steps, {timings['steps_per_second']:,} a second"]
    if step_s is not None:
        kept_up = "kept up" if timings["times_real_time"] >= 1 else "did not keep up"
        text_lines[0] += f": {kept_up} with real time ({timings['times_real_time']:g} times as fast)"
        if timings["slow_steps"]:
            text_lines.append(
                f"  {timings['slow_steps']:,} steps took longer than the {1000 * step_s:g} ms that one lasts"
            )
    for name, quantity in (
        ("latency_ms", "from a step's last event to its spikes"),
        ("compute_ms", "to compute a step"),
    ):
        if timings[name] is not None:
            median, p95, largest = timings[name].values()
            text_lines.append(f"  {quantity}: median {median:.3f}, 95 % {p95:.3f}, max {largest:.3f} ms")
    if timings["late_events"]:
        text_lines.append(
            f"  {timings['late_events']:,} events arrived after the end of their step and were put into a later one"
        )
    return "\n".join(text_lines)


def _unit(run: Trained, options: StreamOptions) -> str:
    """The unit of time.

    Raises:
        ConfigError: the run does not read events, or the unit does not fit it.
    """
    if run.network.coding == "direct":
        raise ConfigError(
            "--stream reads events, but this run reads images; name image files (stsbp predict RUN "
            "FILE...), or give images one by one in Python (run.stream())"
        )
    name, is_installed = run.settings.dataset, is_known(run.settings.dataset)
    if not is_installed and options.time_unit is None:
        raise ConfigError(
            f"--stream: the data set {name} of the run is not installed, so the unit of its time is not known; install "
            "its package, or give --time-unit: step, or a unit of time if the data are recordings"
        )
    timed = is_installed and info_of(name).recordings
    unit = options.time_unit or ("us" if timed else "step")
    if unit != "step" and is_installed and not timed:
        raise ConfigError(f"--time-unit {unit}: the steps of {name} have no duration; leave it out")
    if unit == "step" and (run.settings.stabilise or run.settings.saccades == "first"):
        raise ConfigError(
            "--time-unit step: this run stabilises or selects saccades, which needs times in microseconds"
        )
    if unit == "step" and options.clock:
        raise ConfigError("--clock: a step has no duration if time is counted in steps")
    if options.clock and sys.platform == "win32":
        raise ConfigError("--clock: this system cannot wait for a pipe and a time at once")
    return unit


def _check_recording(options: StreamOptions, unit: str, *, camera: bool) -> None:
    """Raise `ConfigError` if a recording in the format of N-MNIST does not fit the run or the options."""
    if not camera:
        raise ConfigError(f"{options.source}: only networks that read events of a camera can read a recording")
    if unit == "step" and options.time_unit is None:
        raise ConfigError(
            f"{options.source}: the run was not trained on recordings, so its steps have no duration; give lines of "
            "text with --time-unit step"
        )
    if options.clock or unit != "us":
        raise ConfigError(f"{options.source}: a recording contains its own times; leave --clock and --time-unit out")


def stream_events(run: Trained, options: StreamOptions) -> int:
    """Read events until they end. Prints spikes as they come, then the class and the timings.

    Returns:
        The exit code: 0, or 128 plus the number of the signal that ended the stream.

    Raises:
        ConfigError: the run does not read events, or the options do not fit it.
        DataError: the source cannot be read, or contains something else than events. Earlier steps are printed.
    """
    shape, config, unit = run.network.input_shape, run.settings, _unit(run, options)
    camera = len(shape) == 3
    binning = run.task.inputs.fitted(config.binning)
    if unit == "step":
        binning = replace(binning, window_us=binning.steps)
    assert binning.window_us is not None
    step_s = None if unit == "step" else binning.window_us / binning.steps / 1e6
    min_steps, limit, stop = options.steps or (1 if config.own_lengths else config.steps), options.steps, Stop()
    with handled_by(stop):
        source: EventSource
        if Path(options.source).suffix.lower() == ".bin":
            _check_recording(options, unit, camera=camera)
            source = RecordingSource(options.source)
            times = source.times - source.times[0] if options.from_first and len(source.times) else source.times
            if not binning.contains(times).any():
                say_warning(f"{options.source}: {no_events(binning)}, or count time --from-first")
            limit = min_steps = options.steps or (binning.length(times) if config.own_lengths else config.steps)
        else:
            name = "standard input" if options.source == "-" else options.source
            sizes = {"x": binning.width, "y": binning.height, "p": 2} if camera else {"n": binning.width}
            duration_text = f"; a step is {1000 * step_s:g} ms" if step_s is not None else ""
            say(f"{name}: lines of t {' '.join(sizes)}, time in {unit}{duration_text}", err=True)
            source = Pipe(options.source, EventLines(sizes, UNITS[unit], name), stop)
        live = _Live(run, binning, step_s, options, limit, source, stop)
        source.feed(live)
        live.close(min_steps)
        # Print this while the handler is active. A terminal and a shell may both send a signal; the second is ignored.
        if stop.number:
            click.echo(f"{signal.Signals(stop.number).name}: stopped after {live.steps} steps", err=True)
    return 128 + stop.number if stop.number else 0
