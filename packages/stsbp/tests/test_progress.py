"""What a person sees of a run: testing moves the bar, compiling is told apart, and lines fit 80 columns."""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from stsbp.training import loop, progress
from stsbp.training.progress import Course, Pace, PlainReporter, TerminalReporter, choose_reporter, fitted
from stsbp_spec.engine.trainer import Trainer

Call = Callable[..., Result]


class Watcher(PlainReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: list[tuple[str, float, float | None]] = []
        self.course = Course(0, 0)

    def begin(self, epochs: int, course: Course) -> None:
        self.course = course

    def step(self, epoch: int, means: Mapping[str, Any], doing: str = "") -> None:
        self.seen.append((doing, self.course.share, self.course.remaining))


@pytest.mark.parametrize("test_every", [0, 1, 2])
def test_evaluations_move_the_bar_to_its_end(
    train_tiny: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_every: int
) -> None:
    watcher = Watcher()
    monkeypatch.setattr(progress, "choose_reporter", lambda: watcher)
    assert train_tiny(tmp_path / "run", "--test-every", test_every).exit_code == 0
    shares = [share for _, share, _ in watcher.seen]
    assert all(a < b for a, b in pairwise(shares))
    # 3 epochs of 40 samples; 10 of validation each; 30 of test, as often as asked and in the last epoch.
    tests = {0: 1, 1: 3, 2: 2}[test_every]
    work = 3 * 40 + (3 * 10 + tests * 30) / 3
    assert watcher.seen[0] == ("", 20 / work, None)
    assert shares[-1] == 1
    assert [doing for doing, _, _ in watcher.seen].count("test") == 2 * tests
    # The tests that are still to come are part of the time left, the one before its last batch as well.
    assert watcher.seen[-2][2] > 0  # type: ignore[operator]
    assert watcher.seen[-1][2] == 0


def test_bar_of_a_resumed_run_begins_where_it_was(
    train_tiny: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, resumed = Watcher(), Watcher()
    monkeypatch.setattr(progress, "choose_reporter", lambda: uninterrupted)
    train_tiny(tmp_path / "whole")
    monkeypatch.setattr(progress, "choose_reporter", lambda: resumed)
    train_tiny(tmp_path / "run", "--epochs", 2, "--schedule", "constant")
    resumed.seen.clear()
    assert train_tiny(tmp_path / "run", "--schedule", "constant", "--epochs", 3, "--resume").exit_code == 0
    assert [x[:2] for x in resumed.seen] == [x[:2] for x in uninterrupted.seen[-len(resumed.seen) :]]


def test_compiling_is_told_apart_and_no_part_of_the_rate(
    train_tiny: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, steps, original = 0.0, 0, Trainer.step

    def step(*arguments: Any, **named: Any) -> Any:
        nonlocal now, steps
        steps += 1
        now += 22.0 if steps == 1 else 1.0
        return original(*arguments, **named)

    monkeypatch.setattr(Trainer, "step", step)
    clock = SimpleNamespace(perf_counter=lambda: now, monotonic=lambda: now)
    monkeypatch.setattr(loop, "time", clock)
    done = train_tiny(tmp_path / "run", "--epochs", 4, "--validation", 0, "--limit", 40)
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert lines.count("compiling the kernels: 21 s") == 1
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 4
    # 20 samples in a second.
    assert all(line.split("  ")[3] == "20 samples/s" for line in epochs)


def test_pace_is_that_of_batches_after_the_first_of_their_size() -> None:
    pace = Pace()
    pace.add(10, 30.0)
    assert pace.seconds is None
    pace.add(4, 9.0)
    assert pace.compiled() == 0
    for seconds in (2.0, 2.2, 2.1):
        pace.add(10, seconds)
    assert pace.seconds == pytest.approx(0.21)
    assert pace.compiled() == pytest.approx(30 - 2.1 + 9 - 4 * 0.21)
    assert pace.compiled() == 0


def test_compilation_is_reported_at_the_second_batch_of_a_size() -> None:
    pace = Pace()
    # Two updates an epoch, the second one smaller: there may be no third epoch.
    for samples, seconds, compiled in (
        (10, 20.0, 0),
        (4, 9.0, 0),
        (10, 2.0, 18 + 9 - 4 * 0.2),
        (4, 0.8, 0),
        (10, 2.0, 0),
    ):
        pace.add(samples, seconds)
        assert pace.compiled() == pytest.approx(compiled)
    # A slow second batch hides what the next ones show.
    pace = Pace()
    for seconds, compiled in ((5.0, 0), (4.0, 0), (1.0, 0), (1.0, 4.0), (1.0, 0)):
        pace.add(10, seconds)
        assert pace.compiled() == pytest.approx(compiled)
    pace = Pace()
    for seconds in (3.5, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1):
        pace.add(10, seconds)
        assert pace.compiled() == 0


def test_first_batches_that_are_hardly_slower_are_not_reported() -> None:
    for first, compiled in ((3.9, 0.0), (4.0, 3.0)):
        pace = Pace()
        for seconds in (first, 1.0, 1.0, 1.0):
            pace.add(10, seconds)
        assert pace.compiled() == compiled


def test_time_left_counts_updates_and_evaluations() -> None:
    course = Course(10, 5, 300, updates_done=4, evaluated=100)
    assert course.share == pytest.approx((4 * 5 + 100 / 3) / (50 + 100))
    assert course.remaining is None
    for _ in range(2):
        course.update(5, 1.0)
    # 4 updates of a second, 200 samples at a third of a fifth of a second.
    assert course.remaining == pytest.approx(4 + 200 * 0.2 / 3)
    for _ in range(2):
        course.evaluate(50, 2.0)
    assert course.remaining == pytest.approx(4 + 100 * 0.04)
    assert course.rate == 5


_MEANS = {"loss": 123.45678, "f1": 0.98765}


def far() -> Course:
    course = Course(10**6, 100, 10**6, updates_done=999)
    for _ in range(3):
        course.update(100, 0.001)
    course._begun -= 100_000
    return course


def test_lines_of_a_log_fit_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    file = io.StringIO()
    show = PlainReporter(file)
    show.begin(1000, far())
    show.step(998, _MEANS, "validation")
    show.note("x" * 70, "12345 samples/s", "rates")
    line, note = file.getvalue().splitlines()
    assert len(line) <= 80
    assert re.search(r"epoch 999/1000 validation .*F1 \(1 step\) 98\.77%.*left ", line)
    assert note == "x" * 70
    show.note("x" * 60, "12345 samples/s", "rates")
    assert file.getvalue().splitlines()[-1] == "x" * 60 + "  12345 samples/s"


def test_epochs_of_a_run_are_lines_of_80_columns_that_name_the_figure(
    stsbp: Call, train_tiny: Call, tmp_path: Path
) -> None:
    done = train_tiny(tmp_path / "run", "--net", "12-12-12-12-12-12-12-12")
    assert done.exit_code == 0, done.output
    epochs = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 3
    assert all(len(line) <= 80 for line in epochs)
    figures = re.compile(r"loss \S+  accuracy train \S+% valid\. \S+% test \S+%( |$)")
    assert all(figures.search(line) for line in epochs)
    options = ("--epochs", 1, "--limit", 4, "--net", "8", "--out", tmp_path / "patterns")
    done = stsbp("train", "patterns", *options)
    assert done.exit_code == 0, done.output
    assert re.search(r"^epoch 1/1  loss \S+  F1 \(1 step\) train \S+% test \S+%", done.stderr, re.MULTILINE)
    assert "accuracy" not in done.stderr


@pytest.mark.parametrize("width", [80, 60, 200])
def test_bar_fits_the_terminal_and_tells_elapsed_from_left(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    file = io.StringIO()
    show = TerminalReporter(file)
    show._console._force_terminal = True
    show._console.width = width
    show.begin(1000, far())
    show.step(998, _MEANS, "validation")
    show.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    lines = [line for part in text.splitlines() for line in part.split("\r") if line.strip()]
    assert lines
    assert all(len(line.rstrip()) <= width for line in lines)
    assert "F1 (1 step) 98.77%" in lines[-1]
    assert re.search(r"left \d+:\d\d$", lines[-1].rstrip())
    assert ("elapsed 27:46:40" in lines[-1]) == (width == 200)


def test_parts_are_left_out_in_their_order() -> None:
    parts = {"a": "aaaa", "b": "", "c": "cccc", "d": "dd"}
    assert fitted(parts, ("c", "a"), 14) == "aaaa  cccc  dd"
    assert fitted(parts, ("c", "a"), 13) == "aaaa  dd"
    assert fitted(parts, ("c", "a"), 7) == "dd"
    assert fitted(parts, ("c",), 1) == "aaaa  dd"


@pytest.mark.parametrize(
    ("test_every", "samples"),
    [
        (0, [0, 5, 10, 15, 20 + 30]),
        (1, [0, 5 + 30, 10 + 60, 15 + 90, 20 + 120]),
        (2, [0, 5, 10 + 30, 15 + 30, 20 + 60]),
        (3, [0, 5, 10, 15 + 30, 20 + 60]),
    ],
)
def test_evaluations_are_those_of_every_epoch_and_of_the_last(test_every: int, samples: list[int]) -> None:
    """5 samples of validation every epoch, 30 of the test every so many epochs and after the fourth, the last."""
    splits = {"validation": range(5), "test": range(30)}
    run: Any = SimpleNamespace(
        data=SimpleNamespace(splits=lambda: splits), config=SimpleNamespace(test_every=test_every, epochs=4)
    )
    assert [loop._TrainingLoop.evaluations(run, epochs) for epochs in range(5)] == samples


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Lost(_Terminal):
    """A terminal that is closed while the bar is drawn."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("kind", [PlainReporter, TerminalReporter])
@pytest.mark.parametrize("closed", [True, False])
def test_reporters_continue_after_their_output_was_closed(
    kind: type[PlainReporter] | type[TerminalReporter], closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("stsbp.training.progress._SECONDS_BETWEEN_LINES", 0)
    file = _Terminal() if closed else _Lost()
    show = kind(file)
    show.loading("reading", 0, 3)
    if closed:
        file.close()
    show.begin(1000, far())
    show.step(998, _MEANS, "validation")
    show.note("epoch 1/3", "more")
    show.warn("layer conv1 is silent")
    show.close()


@pytest.mark.parametrize(
    ("variables", "kind"),
    [({}, TerminalReporter), ({"TERM": "dumb"}, PlainReporter), ({"JPY_PARENT_PID": "1"}, PlainReporter)],
)
def test_lines_are_redrawn_where_a_terminal_can(
    variables: dict[str, str], kind: type[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    show = choose_reporter(_Terminal())
    show.close()
    assert type(show) is kind
