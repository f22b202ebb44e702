"""Death at every file operation: `python -m campaigns.crash --help`, or `nox -s crash -- --help`.

A process that has imported everything is forked for each trial. The child runs a command and is killed with SIGKILL at
its k-th file operation, in the middle of a write, or at a random moment; or that operation fails as on a full or broken
disk. Another child then gives the command that goes on, and the end must be that of a command that nobody disturbed.

A kill loses what the process had not handed to the system. It does not lose what the system had not brought to the
disk: a loss of power is not tried.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

# Imported once, so that a child begins at once: a trial takes a tenth of a second, and imports would take seconds.
from stsbp.cli import evaluate, experiment, predict, report, train  # noqa: F401
from stsbp_spec.registry import open_backend

from campaigns.calls import Complaint, aligned, call, check_output
from campaigns.worlds import PICTURES, World, scratch_folder

__all__ = ["SCENARIOS", "Blow", "Scenario", "Trials", "command", "crash"]

_NUMPY = ("--backend", "numpy")
_EVERY = ("--checkpoint-every", "0", "--dropout", "0.1")
_LONGEST = 60.0
"""Seconds that a child may take."""
_MOVED = "-moved"
_TIMES = ("seconds", "samples_per_second", "seconds_per_epoch", "digest")


@dataclass(frozen=True)
class Blow:
    """What happens to a command.

    Attributes:
        kind: `kill`; the error that an operation ends in, `ENOSPC` or `EIO`; `move`: another process takes the folder
            of the run away; empty: nothing.
        at: number of the file operation, from 1; 0: a random moment.
        share: of the bytes of a write that are written before; None: the operation is not begun.
        lasting: every later write and creation fails as well, as on a disk that stays full.
        seconds: the moment, where `at` is 0.
    """

    kind: str = ""
    at: int = 0
    share: float | None = None
    lasting: bool = False
    seconds: float = 0.0

    def __str__(self) -> str:
        moment = f"at {self.seconds:.3f} s" if not self.at else f"at operation {self.at}"
        part = "" if self.share is None else f" after {self.share:.0%} of the bytes"
        return f"{self.kind or 'nothing'} {moment}{part}{' and from then on' if self.lasting else ''}"


class Disk:
    """Counts what a process asks of the files below a folder, and strikes at one of the operations.

    Python's own functions are replaced: `open` and `FileIO`, with the writes and truncations of their files, and the
    functions of `os` that change something.
    """

    NAMES = (
        "fsync",
        "fdatasync",
        "replace",
        "rename",
        "unlink",
        "remove",
        "truncate",
        "ftruncate",
        "mkdir",
        "rmdir",
        "link",
    )

    def __init__(self, root: Path, blow: Blow, prey: str = "") -> None:
        self.prey, self.rename = prey, os.rename
        self.root = os.path.realpath(root) + os.sep
        self.blow, self.count, self.writes = blow, 0, list[int]()
        self.open = builtins.open
        self.full = False

    def install(self) -> None:
        """Replace the functions, for the rest of this process."""
        # A trace of system calls would also show what libraries write without Python's functions, but it needs a tool
        # that not every machine has. stsbp writes all its files with these functions.
        for name in self.NAMES:
            if hasattr(os, name):
                setattr(os, name, self.guarded(getattr(os, name), name))
        system_open = os.open

        def os_open(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and self.counts(path, named):
                self.step("open")
            return system_open(path, flags, *arguments, **named)

        os.open = os_open
        plain_file = io.FileIO

        def file_io(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> io.FileIO:
            if not set(mode) & set("wax+") or not self.counts(file, {}):
                return plain_file(file, mode, *arguments, **named)
            if not isinstance(file, int):
                self.step("open")
            return _File(self, file, mode)

        builtins.open = io.open = self.opened
        for module in (io, *(module for name, module in sys.modules.items() if name.split(".")[0] == "stsbp")):
            if getattr(module, "FileIO", None) is plain_file:
                module.FileIO = file_io  # type: ignore[attr-defined]

    def counts(self, path: Any, named: dict[str, Any]) -> bool:
        """Whether an operation on this path or descriptor counts."""
        if isinstance(path, int) or any(name.endswith("dir_fd") and named[name] is not None for name in named):
            return True
        return f"{os.path.abspath(os.fsdecode(path))}{os.sep}".startswith(self.root)

    def step(self, operation: str, write: Callable[[float], object] | None = None) -> None:
        """An operation is about to begin; `write` writes a share of its bytes."""
        self.count += 1
        if write is not None:
            self.writes.append(self.count)
        blow = self.blow
        failing = blow.kind not in ("", "kill", "move")
        if failing and self.full and operation in ("open", "write", "mkdir", "rename"):
            raise OSError(getattr(errno, blow.kind), os.strerror(getattr(errno, blow.kind)))
        if not blow.at or self.count != blow.at:
            return
        if blow.kind == "move":
            if os.path.isdir(self.prey):
                self.rename(self.prey, self.prey + _MOVED)
            return
        if blow.share is not None and write is not None:
            write(blow.share)
        if blow.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(_LONGEST)
        self.full = blow.lasting
        raise OSError(getattr(errno, blow.kind), os.strerror(getattr(errno, blow.kind)))

    def guarded(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """An operation of `os` that counts."""

        def operation(path: Any, *arguments: Any, **named: Any) -> Any:
            if self.counts(path, named):
                self.step("rename" if name == "replace" else name)
            return function(path, *arguments, **named)

        return operation

    def opened(self, file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **named: Any) -> Any:
        """`open` whose raw file counts."""
        if not set(mode) & set("wax+") or not self.counts(file, {}):
            return self.open(file, mode, buffering, *arguments, **named)
        if not isinstance(file, int):
            self.step("open")
        raw = _File(self, file, mode.replace("b", "").replace("t", ""))
        binary: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return raw if buffering == 0 else binary
        text = dict(zip(("encoding", "errors", "newline"), arguments, strict=False)) | named
        return io.TextIOWrapper(binary, **text, write_through=True)


class _File(io.FileIO):
    """A file whose writes count."""

    def __init__(self, disk: Disk, path: Any, mode: str) -> None:
        self.disk = disk
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        content = bytes(data)
        write_all = super().write

        def part(share: float) -> object:
            return write_all(content[: max(1, int(share * len(content)))])

        self.disk.step("write", part if len(content) > 1 else None)
        return write_all(content)

    def truncate(self, size: int | None = None) -> int:
        self.disk.step("truncate")
        return super().truncate(size)


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code (negative: the signal), and what it did and said."""

    code: int
    err: str
    operations: int
    writes: tuple[int, ...]
    seconds: float
    broken: str


def run(world: World, arguments: tuple[str, ...], blow: Blow, log: Path, prey: str = "") -> Ended:
    """Run a command in the world in a child, and strike it; `prey` is the folder that a blow may move away."""
    log.unlink(missing_ok=True)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(world, arguments, blow, log, prey)
    deadline = began + (blow.seconds if blow.kind == "kill" and not blow.at else _LONGEST)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(status)
    outcome: dict[str, Any] = {}
    if code != -signal.SIGKILL:
        outcome = json.loads(log.read_text(encoding="utf-8"))
    if code == -signal.SIGKILL and blow.kind != "kill":
        outcome["broken"] = f"it hangs for {_LONGEST:g} s"
    return Ended(
        code,
        outcome.get("err", ""),
        outcome.get("operations", 0),
        tuple(outcome.get("writes", ())),
        time.monotonic() - began,
        outcome.get("broken", ""),
    )


def _child(world: World, arguments: tuple[str, ...], blow: Blow, log: Path, prey: str) -> None:
    """Run the command and leave without a trace of this campaign."""
    code, result = 1, dict[str, Any]()
    try:
        plain = open(log, "w", encoding="utf-8")  # noqa: SIM115 - opened before the disk counts
        disk = Disk(world.root, blow, str(world.root / prey))
        with world.at_home():
            disk.install()
            called = call([*_NUMPY, *arguments])
        code = called.code
        result = {"err": called.err, "operations": disk.count, "writes": disk.writes}
        try:
            check_output(called)
        except BaseException as error:
            result["broken"] = "".join(traceback.format_exception(error, chain=False))
        plain.write(json.dumps(result))
        plain.close()
    finally:
        os._exit(code)


@dataclass(frozen=True)
class Scenario:
    """A command that is disturbed, the one that goes on, and what they make.

    Attributes:
        first: its arguments.
        then: those of the command that a user would give next; again and again it may be killed as well.
        makes: what they write, below the folder `work`; everything else must stay as it was.
        setup: commands that prepare the world.
        cold: the cache of decoded samples is emptied before.
    """

    first: tuple[str, ...]
    then: tuple[str, ...]
    makes: tuple[str, ...]
    setup: tuple[tuple[str, ...], ...] = ()
    cold: bool = False


_TRAIN = ("train", *PICTURES, *_EVERY, "--out", "runs/new")
_REPORT = ("report", "runs/new", "--out", "new.html")
_DRAW = ("predict", "runs/new", "one.png", "--draw", "drawn.html")
_SEVERAL = ("experiment", *PICTURES, *_EVERY, "--seeds", "2", "--out", "new")
SCENARIOS: dict[str, Scenario] = {
    "train": Scenario(_TRAIN, (*_TRAIN, "--resume"), ("runs/new",)),
    "cold": Scenario(_TRAIN, (*_TRAIN, "--resume"), ("runs/new",), cold=True),
    "resume": Scenario(
        (*_TRAIN, "--resume"), (*_TRAIN, "--resume"), ("runs/new",), ((*_TRAIN, "--stop-after", "0.0001"),)
    ),
    "overwrite": Scenario(
        (*_TRAIN, "--overwrite"), (*_TRAIN, "--overwrite"), ("runs/new",), ((*_TRAIN, "--epochs", "1"),)
    ),
    "experiment": Scenario(_SEVERAL, _SEVERAL, ("new",)),
    "report": Scenario(_REPORT, _REPORT, ("new.html",), (_TRAIN,)),
    "draw": Scenario(_DRAW, _DRAW, ("drawn.html",), (_TRAIN,)),
}
"""What is disturbed, by its name."""


def _figures(value: Any) -> Any:
    """JSON without times, and without digests, which depend on them."""
    if isinstance(value, dict):
        return {key: _figures(x) for key, x in value.items() if key not in _TIMES and key not in ("time", "command")}
    return [_figures(x) for x in value] if isinstance(value, list) else value


def _essence(path: Path) -> str:
    """What must be the same of a file in the end: its bytes, or what it says but for times."""
    data = path.read_bytes()
    if path.name == "environment.json":
        return "starts"
    if path.suffix == ".md":
        return "table"
    if path.suffix in (".json", ".jsonl"):
        lines = data.splitlines() if path.suffix == ".jsonl" else [data]
        values = [_figures(json.loads(line)) for line in lines]
        for value in values:
            for sums in ("sums", "window"):
                value.get(sums, {}).pop("seconds", None)
        if path.name == "last.json":
            # The records contain times, and how long they are depends on how many digits these have.
            values[0].pop("metrics_bytes")
            values[0].pop("metrics_sha256")
        return json.dumps(values, sort_keys=True)
    if path.suffix == ".html":
        return "page" if data.rstrip().endswith(b"</html>") else f"half a page of {len(data)} bytes"
    return hashlib.sha256(data).hexdigest()


def ending(world: World, scenario: Scenario) -> dict[str, str]:
    """What the scenario has made: the essence of each file by its name."""
    essences: dict[str, str] = {}
    for name in scenario.makes:
        top = world.root / "work" / name
        for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
            essences[str(path.relative_to(world.root))] = _essence(path)
    return essences


@dataclass
class Trials:
    """What came of a scenario."""

    kills: int = 0
    in_writes: int = 0
    failures: int = 0
    operations: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)


class _Stage:
    """A scenario in its world, with the ending that nobody disturbed."""

    def __init__(self, name: str, scenario: Scenario, folder: Path) -> None:
        self.name, self.scenario, self.trials = name, scenario, Trials()
        self.log = folder / f"{name}.log"
        self.world = World(folder / name, with_runs=False)
        if not scenario.cold:
            # It fills the cache of decoded samples.
            self.undisturbed(_TRAIN)
            shutil.rmtree(self.world.root / "work/runs")
        for arguments in scenario.setup:
            self.undisturbed(arguments)
        self.world.remember()
        self.first = self.undisturbed(scenario.first)
        self.expected = ending(self.world, scenario)
        self.check_world()
        self.world.restore()
        self.trials.operations = self.first.operations

    def undisturbed(self, arguments: tuple[str, ...]) -> Ended:
        """Run a command; an error is one of this campaign."""
        ended = run(self.world, arguments, Blow(), self.log)
        if ended.code not in (0, 75) or ended.broken:
            raise RuntimeError(f"{self.name}: {' '.join(arguments)}: exit code {ended.code}: {ended.err}{ended.broken}")
        return ended

    def trial(self, blows: list[Blow]) -> None:
        """Strike the first command and those that go on, then let one come to its end and compare."""
        try:
            for number, blow in enumerate(blows):
                arguments = self.scenario.then if number else self.scenario.first
                prey = f"work/{self.scenario.makes[0]}"
                ended = run(self.world, arguments, blow, self.log, prey)
                self.count(blow, ended)
                self.check_ended(blow, ended)
                self.bring_back(self.world.root / prey)
                self.check_world(resting=False)
            ended = run(self.world, self.scenario.then, Blow(), self.log)
            if ended.code != 0 or ended.broken:
                raise Complaint(f"it does not go on: exit code {ended.code}\n{ended.err[-500:]}{ended.broken[-1500:]}")
            actual = ending(self.world, self.scenario)
            for name in sorted(self.expected.keys() | actual.keys()):
                if self.expected.get(name) != actual.get(name):
                    difference = "left over" if name not in self.expected else "lost" if name not in actual else "other"
                    kind = name if difference != "left over" else f"*{Path(name).suffix}"
                    raise Complaint(f"in the end, {difference}: {kind}\n{name}\n{actual.get(name, '')[:300]}")
            self.check_world()
        except Complaint as error:
            name, _, text = str(error).partition("\n")
            self.trials.faults[name] += 1
            if self.trials.faults[name] <= 2:
                self.trials.shown.append(f"{self.name}: {name}\n  {'; '.join(map(str, blows))}\n  {text}")
        finally:
            self.world.restore()

    def count(self, blow: Blow, ended: Ended) -> None:
        """Count a blow that struck."""
        if blow.kind == "kill" and ended.code == -signal.SIGKILL:
            self.trials.kills += 1
            self.trials.in_writes += blow.share is not None
        elif blow.kind not in ("", "kill"):
            self.trials.failures += 1

    @staticmethod
    def bring_back(prey: Path) -> None:
        """Put a folder that was moved away where it was; complain where it was made again."""
        moved = prey.with_name(prey.name + _MOVED)
        if moved.exists():
            if prey.exists():
                raise Complaint(f"a folder that was moved away is made again\n{sorted(prey.rglob('*'))}")
            moved.rename(prey)

    @staticmethod
    def check_ended(blow: Blow, ended: Ended) -> None:
        """Complain where a command that met an error did not end in one message."""
        if ended.broken:
            raise Complaint(f"after {blow.kind}: {ended.broken.strip().splitlines()[-1][:200]}\n{ended.broken[-1500:]}")

    def check_world(self, *, resting: bool = True) -> None:
        """Complain of what is changed, lost or left over outside of what the scenario makes."""
        makes = tuple(f"work/{name}" for name in self.scenario.makes)
        for name, change in self.world.differences().items():
            expected = name.startswith(makes) or any(path.startswith(f"{name}/") for path in makes)
            temporary = name.endswith(".tmp")
            if temporary and not resting:
                continue
            if temporary:
                raise Complaint(f"a temporary file stays\n{name}")
            if not expected and not (change == "new" and name.startswith("cache/")):
                raise Complaint(f"another file is {change}\n{name}")


def _plan(stage: _Stage, rng: random.Random, kills: int) -> list[list[Blow]]:
    """Trials of a scenario: each operation once, writes in their middle, random moments, then again as errors."""
    first = stage.first
    places = [Blow("kill", at) for at in range(1, first.operations + 1)]
    halves = [Blow("kill", at, share) for at in first.writes for share in (0.5, 0.02, 0.98)]
    rng.shuffle(places)
    rng.shuffle(halves)
    trials: list[list[Blow]] = []
    for number in range(kills):
        if number % 5 < 2 and halves:
            blow = halves[(number // 5 * 2 + number % 5) % len(halves)]
        elif number % 5 < 4:
            blow = places[(number // 5 * 2 + number % 5 - 2) % len(places)]
        else:
            blow = Blow("kill", seconds=rng.uniform(0, first.seconds))
        trials.append([blow])
    # Some of them meet what goes on as well.
    at = 0
    while at + 1 < len(trials):
        if rng.random() < 0.15:
            trials[at] += trials.pop(at + 1)
        at += 1
    failures = [
        [Blow(error, at, share, error == "ENOSPC" and rng.random() < 0.7)]
        for at in range(1, first.operations + 1)
        for error in ("ENOSPC", "EIO")
        for share in ((0.5,) if at in first.writes else (None,))
    ]
    if not Path(stage.scenario.makes[0]).suffix:
        failures += [[Blow("move", at)] for at in range(1, first.operations + 1)]
    rng.shuffle(failures)
    trials += failures[: max(1, kills // 2)]
    rng.shuffle(trials)
    return trials


def crash(names: list[str], *, kills: int, seed: int, seconds: float) -> dict[str, Trials]:
    """Run the campaign; returns what came of each scenario.

    Args:
        names: of the scenarios.
        kills: in all; half as many errors of the disk are tried besides.
        seed: of their places.
        seconds: at most.
    """
    rng, until = random.Random(seed), time.monotonic() + seconds
    open_backend("numpy")
    folder = scratch_folder("crash")
    try:
        stages = [_Stage(name, SCENARIOS[name], folder) for name in names]
        operations = sum(stage.first.operations for stage in stages)
        turns: list[tuple[float, _Stage, list[Blow]]] = []
        for stage in stages:
            # Half of the kills by the number of its operations, half of them to each scenario alike.
            share = 0.5 * stage.first.operations / operations + 0.5 / len(stages)
            plan = _plan(stage, rng, round(kills * share))
            turns += [(number / len(plan), stage, blows) for number, blows in enumerate(plan)]
        reported = time.monotonic()
        planned = [(stage, blows) for _, stage, blows in sorted(turns, key=lambda turn: turn[0])]
        # A blow may come when its command is over: more of them, until there were as many as were asked for.
        more = ((stage, blows) for _ in itertools.count() for stage in stages for blows in _plan(stage, rng, 1)[:1])
        for number, (stage, blows) in enumerate(itertools.chain(planned, more)):
            done = number >= len(planned) and sum(stage.trials.kills for stage in stages) >= kills
            if done or time.monotonic() > until:
                break
            if time.monotonic() - reported > 60:
                reported = time.monotonic()
                click.echo(f"{sum(stage.trials.kills for stage in stages)} kills", err=True)
            shown = len(stage.trials.shown)
            stage.trial(blows)
            for text in stage.trials.shown[shown:]:
                click.echo(text)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {stage.name: stage.trials for stage in stages}


def table(trials: dict[str, Trials]) -> str:
    """Kills, errors and faults of each scenario."""
    rows: list[tuple[str, ...]] = [("scenario", "operations", "kills", "in writes", "errors", "faults")]
    for name, counts in trials.items():
        numbers = (counts.operations, counts.kills, counts.in_writes, counts.failures, counts.faults.total())
        rows.append((name, *map(str, numbers)))
    rows.append(("all", *(str(sum(int(row[i]) for row in rows[1:])) for i in range(1, 6))))
    return aligned(rows)


@click.command()
@click.option("--kills", type=click.IntRange(1), help="In all.  [default: as many as fit into --seconds]")
@click.option("--seconds", type=float, help="At most so long.  [default: 120, or without end where --kills is given]")
@click.option("--seed", default=0, show_default=True, help="Another seed gives other moments.")
@click.option(
    "--scenario", "names", multiple=True, type=click.Choice(list(SCENARIOS)), help="Only this; may be repeated."
)
def command(kills: int | None, seconds: float | None, seed: int, names: tuple[str, ...]) -> None:
    """Kill commands at every file operation, fail their operations, and see that they go on to the same end."""
    limit = seconds if seconds is not None else 120.0 if kills is None else float("inf")
    began = time.monotonic()
    trials = crash(list(names or SCENARIOS), kills=kills or 400, seed=seed, seconds=limit)
    click.echo(table(trials))
    click.echo(f"seed {seed}, {time.monotonic() - began:.0f} s")
    sys.exit(any(result.faults for result in trials.values()))


if __name__ == "__main__":
    command()
