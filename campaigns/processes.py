"""Faults of a run on several processes: `python -m campaigns.processes --help`, or `nox -s processes -- --help`.

Each trial begins a run on two or three real processes and does something to one of them: kills it at a random moment,
stops it, cuts its connections, fills its disk, or has it begin with other settings, sources or data. All processes must
then end with one message that names the cause, and a run that goes on, on another number of processes, must end in the
bits of one that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import stsbp
import stsbp_spec
from stsbp_spec.distributed.rendezvous import free_port

from campaigns.calls import Complaint, aligned
from campaigns.worlds import recording, scratch_folder

__all__ = ["FAULTS", "LOST", "Ended", "Fault", "Stage", "check", "command"]

_SETTINGS = (
    *("--net", "6", "--steps", "3", "--epochs", "12", "--batch-size", "4", "--log-every", "1", "--seed", "1"),
    *("--holdout", "6", "--validation", "4", "--precision", "reproducible", "--dropout", "0.1"),
    *("--checkpoint-every", "0", "--lr", "0.01", "--init-rate", "0.2"),
)
_TIMEOUT = 4.0
"""Seconds of `--rank-timeout`."""
_LONGEST = 90.0
"""Seconds that a run may take to end after what is done to it."""
_BEGUN = 6
"""Lines of metrics that a run has before it is disturbed."""
LOST = 69
"""Exit code where a process was lost."""

_SABOTAGE = """
import os, socket, threading, time
if os.environ.get("RANK") == os.environ.get("SABOTAGE_RANK"):
    if "SABOTAGE_SYNCS" in os.environ:
        left, sync = int(os.environ["SABOTAGE_SYNCS"]), os.fsync
        def fsync(descriptor):
            global left
            left -= 1
            if left < 0:
                raise OSError(28, os.strerror(28))
            sync(descriptor)
        os.fsync = fsync
    if "SABOTAGE_FILE" in os.environ:
        def cut():
            while not os.path.exists(os.environ["SABOTAGE_FILE"]):
                time.sleep(0.01)
            for name in os.listdir("/proc/self/fd"):
                try:
                    one = socket.socket(fileno=os.dup(int(name)))
                    if one.family in (socket.AF_INET, socket.AF_INET6) and one.getpeername():
                        one.shutdown(socket.SHUT_RDWR)
                    one.close()
                except OSError:
                    pass
        threading.Thread(target=cut, daemon=True).start()
"""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    err: str
    seconds: float


class _Run:
    """A command on several processes that it starts itself, and those processes by their ranks."""

    def __init__(self, stage: Stage, size: int, *more: str, **environment: str) -> None:
        self.stage, self.size = stage, size
        arguments = ("--processes", str(size), "--rank-timeout", str(_TIMEOUT), *more)
        self.process = stage.begin((*stage.train, *arguments), environment=environment)

    def ranks(self) -> dict[int, int]:
        """Process numbers by rank, of those that are there."""
        pids = {}
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                with contextlib.suppress(OSError):
                    variables = dict(
                        entry.split(b"=", 1)
                        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                        if entry
                    )
                    pids[int(variables.get(b"RANK", b"-1"))] = int(pid)
        return pids

    def wait_for_updates(self) -> None:
        """Return when the run has done some updates."""
        until = time.monotonic() + _LONGEST
        while self.process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                if self.stage.metrics.read_bytes().count(b"\n") >= _BEGUN:
                    return
            time.sleep(0.02)

    def ended(self) -> Ended:
        """Wait for its end."""
        began, pids = time.monotonic(), self.ranks().values()
        try:
            _, err = self.process.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise Complaint(f"it does not end within {_LONGEST:g} s") from None
        finally:
            living = [pid for pid in pids if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]
            for pid in living:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        if living:
            raise Complaint(f"processes stay\n{living}")
        return Ended(self.process.returncode, err, time.monotonic() - began)


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@dataclass
class Stage:
    """Where trials are made: data, and the end of a run that nobody disturbed."""

    root: Path
    expected: str = ""
    struck: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    def __post_init__(self) -> None:
        for name, shift in (("data", 0), ("other", 1000)):
            for digit in range(10):
                for number in (1, 2, 3):
                    path = self.root / name / "Train" / str(digit) / f"{number}.bin"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(recording(shift + 10 * digit + number))
        (self.root / "sabotage").mkdir()
        (self.root / "sabotage/sitecustomize.py").write_text(_SABOTAGE)
        ended = self.begin(self.train)
        _, err = ended.communicate()
        if ended.returncode != 0:
            raise RuntimeError(f"a run that nobody disturbs ends with {ended.returncode}: {err}")
        self.expected = self.tensors()

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.root / "run"

    @property
    def metrics(self) -> Path:
        """Its records."""
        return self.run / "metrics.jsonl"

    @property
    def train(self) -> tuple[str, ...]:
        """The command that begins a run."""
        return ("train", "nmnist", *_SETTINGS, "--data-dir", str(self.root / "data"), "--out", str(self.run))

    def tensors(self) -> str:
        """SHA-256 of the last checkpoint's tensors, which its description names.

        Raises:
            Complaint: it is damaged.
        """
        try:
            description = json.loads((self.run / "last.json").read_text())
            digest = hashlib.sha256((self.run / description["file"]).read_bytes()).hexdigest()
        except (OSError, ValueError, KeyError) as error:
            raise Complaint(f"the last checkpoint is damaged: {type(error).__name__}\n{error}") from error
        if digest != description["sha256"]:
            raise Complaint("the last checkpoint is damaged: another SHA-256")
        return digest

    def begin(
        self, arguments: Sequence[str], packages: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start `stsbp ARGUMENTS`, with the packages of another folder where one is given."""
        path = [str(self.root / "sabotage"), *([str(packages)] if packages is not None else [])]
        variables = {
            "STSBP_CACHE": str(self.root / "cache"),
            "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "stsbp", "--backend", "numpy", *arguments],
            cwd=self.root,
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def by_hand(self, *changed: tuple[tuple[str, ...], Path | None]) -> Ended:
        """A run whose ranks are started one by one, with options and packages of their own; all must say one thing."""
        port, began = free_port(), time.monotonic()
        arguments = (*self.train, "--rank-timeout", str(_TIMEOUT))
        variables = {"WORLD_SIZE": str(len(changed)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [
            self.begin(
                (*arguments, *options),
                packages,
                {**variables, "RANK": str(rank)},
            )
            for rank, (options, packages) in enumerate(changed)
        ]
        ended = []
        for process in ranks:
            try:
                ended.append(process.communicate(timeout=_LONGEST)[1])
            except subprocess.TimeoutExpired:
                for other in ranks:
                    other.kill()
                raise Complaint(f"it does not end within {_LONGEST:g} s") from None
        messages = {err[err.find("Error: ") :].strip() for err in ended}
        codes = {process.returncode for process in ranks}
        if len(messages) != 1 or len(codes) != 1:
            raise Complaint(f"ranks end in different ways: {sorted(codes)}\n{messages}")
        return Ended(codes.pop(), ended[0], time.monotonic() - began)

    def go_on(self, size: int) -> None:
        """Let the run come to its end on so many processes, and compare."""
        several = ("--processes", str(size)) if size > 1 else ()
        process = self.begin((*self.train, *several, "--resume"))
        _, err = process.communicate(timeout=_LONGEST)
        if process.returncode != 0:
            raise Complaint(f"it does not go on: exit code {process.returncode}\n{err[-800:]}")
        if (tensors := self.tensors()) != self.expected:
            raise Complaint(f"it ends in other bits\n{tensors} for {self.expected}")

    def trial(self, name: str, rng: random.Random) -> str:
        """Make a fault, and let the run go on; returns what is wrong, if anything."""
        shutil.rmtree(self.run, ignore_errors=True)
        try:
            fault = FAULTS[name]
            ended = fault.make(self, rng)
            if ended is None:
                return ""
            self.struck[name] += 1
            self.longest = max(self.longest, ended.seconds)
            check(ended, fault)
            if self.run.exists() and (self.run / "last.json").exists():
                self.tensors()
            self.go_on(rng.choice([1, 2, 3]))
        except Complaint as error:
            self.faults[name] += 1
            return f"{name}: {error}"
        return ""


def check(ended: Ended, fault: Fault) -> None:
    """Complain where a run did not end with its exit code and one message that names the cause."""
    if ended.code not in fault.codes:
        raise Complaint(f"exit code {ended.code}\n{ended.err[-800:]}")
    if "Traceback (most recent" in ended.err:
        raise Complaint(f"a traceback was printed\n{ended.err[-2000:]}")
    lines = [line for line in ended.err.splitlines() if line.startswith("Error: ") or ": stopped" in line]
    if len(lines) != 1:
        raise Complaint(f"{len(lines)} messages\n{ended.err[-800:]}")
    if not re.search(fault.says, ended.err):
        raise Complaint(f"the message does not name the cause\n{ended.err[-800:]}")


@dataclass(frozen=True)
class Fault:
    """What is done to a run.

    Attributes:
        make: does it, and waits for the end; None: the run was over already.
        codes: exit codes that it may have.
        says: what its message must match.
    """

    make: Callable[[Stage, random.Random], Ended | None]
    codes: tuple[int, ...]
    says: str


def _kill(stage: Stage, rng: random.Random) -> Ended | None:
    run = _Run(stage, size := rng.choice([2, 3]))
    prey = rng.randrange(size)
    if rng.random() < 0.25:
        # While they begin; else while they train.
        time.sleep(rng.uniform(0.2, 3.0))
    else:
        run.wait_for_updates()
        time.sleep(rng.uniform(0.0, 1.0))
    if (pid := run.ranks().get(prey)) is not None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    ended = run.ended()
    return None if ended.code == 0 else ended


def _hang(stage: Stage, rng: random.Random) -> Ended | None:
    run = _Run(stage, size := rng.choice([2, 3]))
    run.wait_for_updates()
    if (pid := run.ranks().get(rng.randrange(size))) is not None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGSTOP)
    ended = run.ended()
    return None if ended.code == 0 else ended


def _interrupt(stage: Stage, rng: random.Random) -> Ended | None:
    run = _Run(stage, rng.choice([2, 3]))
    run.wait_for_updates()
    run.process.send_signal(signal.SIGINT)
    ended = run.ended()
    return None if ended.code == 0 else ended


def _full_disk(stage: Stage, rng: random.Random) -> Ended | None:
    return _Run(stage, 2, SABOTAGE_RANK="0", SABOTAGE_SYNCS=str(rng.randrange(8, 60))).ended()


def _connection(stage: Stage, rng: random.Random) -> Ended | None:
    sign = stage.root / "cut"
    sign.unlink(missing_ok=True)
    run = _Run(stage, size := rng.choice([2, 3]), SABOTAGE_RANK=str(rng.randrange(size)), SABOTAGE_FILE=str(sign))
    run.wait_for_updates()
    sign.touch()
    ended = run.ended()
    return None if ended.code == 0 else ended


def _port(stage: Stage, _rng: random.Random) -> Ended | None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return _Run(stage, 2, MASTER_PORT=str(server.getsockname()[1])).ended()


def _other_settings(stage: Stage, rng: random.Random) -> Ended | None:
    return stage.by_hand(((), None), (("--lr", f"{rng.uniform(0.02, 0.03):.4f}"), None))


def _other_data(stage: Stage, _rng: random.Random) -> Ended | None:
    return stage.by_hand(((), None), (("--data-dir", str(stage.root / "other")), None))


def _other_sources(stage: Stage, _rng: random.Random) -> Ended | None:
    with _copied(stage, stsbp.__path__[0], "training/loop.py", "", "\n# Another line.\n") as folder:
        return stage.by_hand(((), None), ((), folder))


def _other_contract(stage: Stage, _rng: random.Random) -> Ended | None:
    version = f"CONTRACT_VERSION = {stsbp_spec.CONTRACT_VERSION}\n"
    with _copied(stage, stsbp_spec.__path__[0], "grid.py", version, "CONTRACT_VERSION = 99\n") as folder:
        return stage.by_hand(((), None), ((), folder))


@contextlib.contextmanager
def _copied(stage: Stage, package: str, name: str, old: str, new: str) -> Iterator[Path]:
    """A folder with a copy of a package in which a file says something else."""
    folder = stage.root / "packages"
    shutil.copytree(package, folder / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / Path(package).name / name
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(old, new) if old else text + new, encoding="utf-8")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


FAULTS: dict[str, Fault] = {
    "kill": Fault(_kill, (LOST,), r"rank \d of \d \(pid \d+\) was ended by signal 9 \(SIGKILL\)"),
    "hang": Fault(_hang, (LOST,), r"rank \d of \d \(host \S+, pid \d+\) gave no sign of life"),
    "connection": Fault(_connection, (LOST,), r"rank \d of \d \(host \S+, pid \d+\) is gone: its connection closed"),
    "full disk": Fault(_full_disk, (1,), r"rank 0 of 2 \(host \S+, pid \d+\): cannot write .*(disk is full|No space)"),
    "interrupt": Fault(_interrupt, (130,), r"SIGINT: stopped after update \d+ and saved"),
    "port": Fault(_port, (1,), r"rank 0 cannot listen on port \d+: the port is in use"),
    "settings": Fault(_other_settings, (1,), r"rank 1 of 2 .* was given different settings from rank 0:\n  lr: "),
    "data": Fault(_other_data, (1,), r"rank 1 of 2 .* has different data from rank 0"),
    "sources": Fault(_other_sources, (1,), r"rank 1 of 2 .* has different sources of stsbp from rank 0"),
    "contract": Fault(_other_contract, (1,), r"rank 1 of 2 .* version 99 of the exact-arithmetic contract"),
}
"""What is done, by its name."""


@click.command()
@click.option("--kills", default=20, show_default=True, type=click.IntRange(0), help="Kills at random moments.")
@click.option("--each", default=5, show_default=True, type=click.IntRange(0), help="Trials of every other fault.")
@click.option("--seed", default=0, show_default=True, help="Another seed gives other moments.")
@click.option("--fault", "names", multiple=True, type=click.Choice(list(FAULTS)), help="Only this; may be repeated.")
def command(kills: int, each: int, seed: int, names: tuple[str, ...]) -> None:
    """Kill, stop and mislead processes of a run, and see that the others end and the run goes on to the same bits."""
    rng, began = random.Random(seed), time.monotonic()
    folder = scratch_folder("processes")
    try:
        stage = Stage(folder)
        for name in names or FAULTS:
            planned, tried = kills if name == "kill" else each, 0
            # A run may be over before it is struck.
            while stage.struck[name] < planned and tried < 3 * planned:
                tried += 1
                if text := stage.trial(name, rng):
                    click.echo(text)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [("fault", "trials", "complaints")]
    rows += [(name, str(stage.struck[name]), str(stage.faults[name])) for name in names or FAULTS]
    click.echo(aligned(rows))
    click.echo(f"seed {seed}, {time.monotonic() - began:.0f} s; the longest end took {stage.longest:.1f} s")
    sys.exit(any(stage.faults.values()))


if __name__ == "__main__":
    command()
