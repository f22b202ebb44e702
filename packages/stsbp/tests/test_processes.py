"""Runs on several real processes: the same bits, one set of files, and refusals. Faults: campaigns/processes.py."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import Result
from stsbp.cli import Globals, common
from stsbp.processes import launcher
from stsbp.processes.group import Group
from stsbp.processes.job import Job
from stsbp.processes.monitor import Verdict
from stsbp.training.loop import StopRequest, stop_together
from stsbp.training.metrics import Workload
from stsbp.training.progress import Course
from stsbp_spec.distributed.collective import Rendezvous
from stsbp_spec.engine.backend import Device
from stsbp_spec.errors import BackendError
from stsbp_spec.registry import installed_backends, open_backend

Call = Callable[..., Result]

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="processes are connected by PyTorch")
needs_backends = pytest.mark.skipif("torch" not in installed_backends(), reason="no other backend is installed")
EXACT = ("--precision", "reproducible", "--dropout", "0.1", "--seed", "3")


class Several:
    """The command line on several processes, in an empty working folder."""

    def __init__(self, folder: Path, tiny: tuple[str, ...]) -> None:
        self.folder, self.tiny = folder, (*tiny, *EXACT)

    def start(
        self, *arguments: object, backend: str = "numpy", environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "stsbp", "--backend", backend, *map(str, arguments)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder, env=variables
        )

    def __call__(
        self, *arguments: object, code: int = 0, backend: str = "numpy", **environment: str
    ) -> tuple[str, str]:
        """Both outputs of a command that must end with a code."""
        process = self.start(*arguments, backend=backend, environment=environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        return out, err

    def train(self, out: Path, *arguments: object, code: int = 0, **environment: str) -> tuple[str, str]:
        return self("train", "digits", *self.tiny, "--out", out, *arguments, code=code, **environment)


@pytest.fixture
def several(tmp_path: Path, tiny: tuple[str, ...]) -> Several:
    return Several(tmp_path, tiny)


@pytest.fixture
def alone(train_tiny: Call, tmp_path: Path) -> Path:
    """The run on one process."""
    result = train_tiny(tmp_path / "alone", *EXACT)
    assert result.exit_code == 0, result.output
    return tmp_path / "alone"


@needs_torch
def test_three_processes_write_the_run_of_one(
    several: Several, alone: Path, same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    out, err = several.train(tmp_path / "run", "--processes", 3)
    same_run(tmp_path / "run", alone)
    assert out.count("test accuracy") == 1
    assert err.count("epoch 1/3") == 1
    (start,) = json.loads((tmp_path / "run/environment.json").read_text())["starts"]
    assert start["processes"] == 3
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] in ("step", "epoch"):
            assert line["processes"] == 3
            assert line["slowest_rank"] in range(3)
            assert 0 < line["exchange_share"] < 1


@pytest.mark.long
@needs_torch
def test_stopped_on_two_and_resumed_on_one_and_three(
    several: Several, alone: Path, same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    _, err = several.train(run, "--processes", 2, "--stop-after", "0.000001", code=75)
    assert err.count("time is up: stopped after update 1 and saved. Continue with: stsbp --backend numpy train") == 1
    several("train", "--resume", run, "--stop-after", "0.000001", code=75)
    several("train", "--resume", run, "--processes", 3)
    same_run(run, alone)


@pytest.mark.long
@needs_torch
@needs_backends
def test_stopped_on_four_and_resumed_on_other_backends(
    several: Several, alone: Path, same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    run, at_once = tmp_path / "run", ("--stop-after", "0.000001")
    several.train(run, "--processes", 4, *at_once, code=75)
    several("train", "--resume", run, *at_once, code=75, backend="torch")
    if "jax" in installed_backends():
        several("train", "--resume", run, "--processes", 2, *at_once, code=75, backend="jax")
    several("train", "--resume", run, "--processes", 2, backend="torch")
    same_run(run, alone)


@pytest.mark.long
@needs_torch
def test_evaluation_and_experiment_find_what_one_process_finds(several: Several, alone: Path, tmp_path: Path) -> None:
    one, two = (
        json.loads(several("evaluate", alone, "--json", *more)[0])
        for more in (("--energy",), ("--energy", "--processes", 2, "--batch-size", 7))
    )
    assert one["energy"]["samples"] == one["samples"]
    for figures in (one, two):
        del figures["seconds"]
    assert one == two
    settings = ("experiment", "digits", *several.tiny, "--epochs", 1, "--seeds", 2, "--validation", 10)
    for name, more in (("one", ()), ("two", ("--processes", 2)), ("jobs", ("--jobs", 2))):
        several(*settings, "--out", tmp_path / name, *more)
    tables = [json.loads((tmp_path / name / "experiment.json").read_text()) for name in ("one", "two", "jobs")]
    figures = [
        [{k: seed[k] for k in ("seed", "checkpoint", "test", "operations")} for seed in t["seeds"]] for t in tables
    ]
    assert figures[0] == figures[1] == figures[2]


@pytest.mark.long
@needs_torch
def test_micro_batches_change_nothing(
    several: Several, alone: Path, same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    several.train(tmp_path / "run", "--micro-batch", 3, "--processes", 2)
    same_run(tmp_path / "run", alone)
    several.train(tmp_path / "one", "--micro-batch", 7)
    same_run(tmp_path / "one", alone)


def by_rank(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process numbers of the ranks that a command has started."""
    process_ids: dict[int, int] = {}
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        variables = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
        process_ids[int(variables[b"RANK"])] = int(pid)
    return process_ids


def begun(several: Several, run: Path, *settings: object) -> tuple[subprocess.Popen[str], dict[int, int]]:
    """A run on two processes that has done some updates, and their numbers."""
    process = several.start(*settings, "--processes", 2, "--rank-timeout", 3)
    until = time.monotonic() + 60
    metrics = run / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < until:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= 6:
            break
        time.sleep(0.02)
    return process, by_rank(process)


@pytest.mark.long
@needs_torch
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_ranks_save_and_end_when_their_launcher_is_killed(several: Several, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("train", "digits", *several.tiny, "--epochs", 5000, "--checkpoint-every", 1000, "--out", run)
    process, pids = begun(several, run, *settings)
    process.kill()
    _, err = process.communicate(timeout=30)
    assert "SIGTERM: stopped after update" in err
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids.values()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


KILLED = "was ended by signal 9 (SIGKILL); the last checkpoint is untouched. Continue with:"


@needs_torch
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
@pytest.mark.parametrize(
    ("rank", "number", "code", "says"),
    [
        pytest.param(1, signal.SIGKILL, 69, KILLED, id="rank 1 killed"),
        pytest.param(0, signal.SIGKILL, 69, KILLED, id="rank 0 killed", marks=pytest.mark.long),
        pytest.param(1, signal.SIGSTOP, 69, "gave no sign of life for", id="rank 1 hangs", marks=pytest.mark.long),
        pytest.param(None, signal.SIGINT, 130, "SIGINT: stopped after update", id="Ctrl-C", marks=pytest.mark.long),
        pytest.param(
            1, signal.SIGTERM, 143, "SIGTERM: stopped after update", id="rank 1 terminated", marks=pytest.mark.long
        ),
    ],
)
def test_the_end_of_one_process_ends_all(
    rank: int | None,
    number: signal.Signals,
    code: int,
    says: str,
    several: Several,
    tensors: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    settings = ("train", "digits", *several.tiny, "--epochs", 60, "--checkpoint-every", 0, "--out", run)
    process, pids = begun(several, run, *settings)
    os.kill(process.pid if rank is None else pids[rank], number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert sum(line.startswith("Error: ") or ": stopped" in line for line in err.splitlines()) == 1, err
    assert says in err
    if code == 69:
        assert f"rank {rank} of 2" in err
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    several(*settings, "--resume")
    several("train", "digits", *several.tiny, "--epochs", 60, "--out", tmp_path / "undisturbed")
    assert tensors(run) == tensors(tmp_path / "undisturbed")


def ranks(
    several: Several, out: Path, *changed: tuple[object, ...], backends: tuple[str, ...] = ("numpy", "numpy")
) -> list[tuple[int, str]]:
    """Ranks that are started one by one, each with options of its own: exit code and what it said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    rendezvous = {"WORLD_SIZE": str(len(changed)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        several.start(
            "train",
            "digits",
            *several.tiny,
            "--out",
            out,
            *more,
            backend=backend,
            environment={**rendezvous, "RANK": str(rank)},
        )
        for rank, (more, backend) in enumerate(zip(changed, backends, strict=True))
    ]
    return [(process.returncode, err) for process in started for _, err in [process.communicate(timeout=120)]]


@needs_torch
def test_other_settings_are_refused_by_all(several: Several, tmp_path: Path) -> None:
    ended = ranks(several, tmp_path / "run", (), ("--lr", "0.03", "--threads", 1))
    messages = {err[err.index("Error: ") :] for _, err in ended}
    assert [code for code, _ in ended] == [1, 1]
    assert len(messages) == 1
    assert "was given different settings from rank 0:\n  lr: 0.01 on rank 0, 0.03 there" in messages.pop()
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@needs_torch
def test_ranks_of_another_launcher_write_the_run_of_one(
    several: Several, alone: Path, same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    ended = ranks(several, tmp_path / "run", (), ("--threads", 1))
    assert [code for code, _ in ended] == [0, 0], ended
    assert ended[1][1] == ""
    same_run(tmp_path / "run", alone)


@pytest.mark.long
@needs_torch
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_in_one_keeps_its_traceback(rank: int, several: Several, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nif os.environ.get('RANK') == '{rank}':\n"
        "    import stsbp.training.metrics\n    stsbp.training.metrics.Workload.add = None\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    _, err = several.train(tmp_path / "run", "--processes", 2, code=1, PYTHONPATH=path)
    assert err.count("Traceback (most recent call last)") == 1
    assert err.count("Error: rank") == 1
    assert f"Error: rank {rank} of 2 (host " in err
    assert err.rstrip().endswith("TypeError: 'NoneType' object is not callable")


@pytest.mark.long
@needs_torch
@needs_backends
def test_ranks_of_two_backends_write_the_run_of_one(
    several: Several, alone: Path, same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    ended = ranks(several, tmp_path / "run", (), (), backends=("numpy", "torch"))
    assert [code for code, _ in ended] == [0, 0], ended
    same_run(tmp_path / "run", alone)


@pytest.mark.long
@needs_torch
def test_a_port_that_is_taken(several: Several, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        _, err = several.train(tmp_path / "run", "--processes", 2, code=1, MASTER_PORT=port)
    assert err.count("Error: ") == 1
    assert f"rank 0 cannot listen on port {port}: the port is in use; give the run another port" in err


@pytest.mark.parametrize(
    ("environment", "arguments", "says"),
    [
        ({"RANK": "0"}, (), "RANK is set and WORLD_SIZE is not"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, (), "rank 2 of 2 processes"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            ("--processes", "3"),
            "--processes 3 would start processes, but according to RANK and WORLD_SIZE there are 2 already",
        ),
        ({"TORCHELASTIC_MAX_RESTARTS": "3"}, ("--show-config",), "name that folder with --out"),
    ],
)
def test_wrong_variables_of_launchers_are_refused(
    environment: dict[str, str],
    arguments: tuple[str, ...],
    says: str,
    stsbp: Call,
    refused: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused(stsbp("train", "digits", *arguments), says)


def test_a_restart_by_torchrun_goes_on(
    train_tiny: Call,
    alone: Path,
    same_run: Callable[[Path, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, *EXACT, "--stop-after", "0.000001").exit_code == 75
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    result = train_tiny(run, *EXACT, "--overwrite")
    assert result.exit_code == 0, result.output
    assert "after update 1" in result.stderr
    same_run(run, alone)


def test_the_command_line_of_the_ranks_is_the_one_that_was_typed(stsbp: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def launch(*arguments: Any) -> int:
        started.append(arguments)
        return 69

    monkeypatch.setattr("stsbp.cli.common.launch", launch)
    monkeypatch.setattr("stsbp.cli.common.cores", lambda: 3)
    typed = ("train", "digits", "--processes", "4", "--threads", "3", "--lr", "0.1")
    result = stsbp(*typed)
    assert result.exit_code == 69
    assert "4 processes share 3 cores, and each process loads its own copy of the libraries" in result.stderr
    assert started == [(("--backend", "numpy", *typed), 4, 3)]
    assert "cores" not in stsbp("train", "digits", "--processes", "3").stderr
    assert stsbp("evaluate", "runs/x", "--processes", "2").exit_code == 1  # there is no such run


def test_ranks_share_the_threads_and_know_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "stsbp"
    package.mkdir()
    (package / "__init__.py").touch()
    program = (
        "import os, sys\n"
        "names = 'RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR OMP_NUM_THREADS NUMBA_NUM_THREADS'.split()\n"
        "open(f'said-{os.environ[\"RANK\"]}', 'w').write(' '.join([*sys.argv[1:], *(os.environ[n] for n in names)]))\n"
    )
    (package / "__main__.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert launcher.launch(("a", "b"), 3) == 0
    outputs = [(tmp_path / f"said-{rank}").read_text() for rank in range(3)]
    assert outputs == [f"a b {rank} 3 {rank} 127.0.0.1 2 2" for rank in range(3)]


@pytest.mark.parametrize(
    ("program", "code", "says"),
    [
        ("if rank == 1: print('no such thing'); sys.exit(3)", 3, "rank 1 of 2 (pid "),
        ("if rank == 1: os.kill(os.getpid(), 15)", 69, "was ended by signal 15 (SIGTERM)"),
        ("sys.exit(2)", 2, ""),
        ("sys.exit(0)", 0, ""),
    ],
    ids=["error of one", "signal", "error of all", "none"],
)
def test_how_ranks_end_is_how_the_command_ends(
    program: str,
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    package = tmp_path / "stsbp"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        f"import os, sys, time\nrank = int(os.environ['RANK'])\n{program}\ntime.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launcher, "PATIENCE", 0.5)
    began = time.monotonic()
    assert launcher.launch((), 2) == code
    assert time.monotonic() - began < 20
    err = capfd.readouterr().err
    assert err.count("Error: ") == bool(says)
    assert says in err
    if code == 3:
        assert "no such thing" in err


def test_the_reason_of_ranks_that_end_at_once_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both end between two looks of the process that started them, because it was not scheduled."""
    program = (
        "import json, os, socket\n"
        f"there = socket.socket(fileno=int(os.environ[{launcher.LAUNCHER!r}]))\n"
        "said = json.dumps({'end': 'the disk is full', 'code': 1, 'advice': '', 'trace': 'x' * 100_000}).encode()\n"
        "there.sendall(len(said).to_bytes(4, 'big') + said)\n"
    )
    start = subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", lambda command, **options: start([command[0], "-c", program], **options))
    children = [launcher._Child((), rank, 2, 0, 1) for rank in range(2)]
    for child in children:
        child.process.wait(30)
    launcher._supervise(children)
    assert [child.verdict["end"] for child in children] == ["the disk is full"] * 2
    assert launcher._outcome(children, set()) == Verdict("the disk is full", 1)


class Gpus:
    """A backend on a machine with two GPUs."""

    opened: ClassVar[list[str | None]] = []

    def __init__(self, device: str | None) -> None:
        self.device = device
        self.opened.append(device)

    @classmethod
    def devices(cls) -> tuple[Device, ...]:
        return (
            Device("cpu", ""),
            Device("cuda:0", ""),
            Device("cuda:1", ""),
            Device("cuda:2", "", problem="no memory"),
        )

    @classmethod
    def connect(cls, rendezvous: Rendezvous, device: str | None) -> None:
        """Nothing is to be known before."""


def test_rank_0_prints_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "load_backend", lambda _name: Gpus)
    monkeypatch.setattr(common, "open_backend", lambda _name, device: Gpus(device))
    printed = []
    for rendezvous in (Rendezvous(0, 8, 0), Rendezvous(1, 8, 1), None):
        common.choose_backend(Globals("torch", "cpu"), rendezvous)
        printed.append(capsys.readouterr().err)
    assert printed == ["backend torch on cpu, 8 processes\n", "", "backend torch on cpu\n"]


def test_each_process_opens_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "load_backend", lambda _name: Gpus)
    monkeypatch.setattr(common, "open_backend", lambda _name, device: Gpus(device))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def opened(device: str | None, rendezvous: Rendezvous | None) -> str | None:
        backend = common.choose_backend(Globals("torch", device), rendezvous)
        return backend.device

    ranks = [Rendezvous(4 + local, 8, local) for local in range(4)]
    assert [opened("cuda", rank) for rank in ranks[:2]] == ["cuda:0", "cuda:1"]
    assert [opened("cpu", rank) for rank in ranks] == ["cpu"] * 4
    assert [opened(device, ranks[1]) for device in ("cuda:0", None)] == ["cuda:0", None]
    assert opened("cuda", None) == "cuda"
    with pytest.raises(
        BackendError, match=r"rank 6 of 8 has no GPU of its own.* process 2 \(counted from 0\) on a machine with 2 GPUs"
    ):
        opened("cuda", ranks[2])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert opened("cuda", ranks[2]) == "cuda"
    for several in ("0,1", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", several)
        with pytest.raises(BackendError, match="LOCAL_RANK"):
            opened("cuda", ranks[2])


class Ended:
    """A process that has ended."""

    def __init__(self, _arguments: object, env: dict[str, str], **_more: object) -> None:
        self.stdout, self.stderr, self.env = None, list[str](), env

    def wait(self) -> None:
        """It has."""


def test_jobs_side_by_side_do_not_meet_at_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("STSBP_DATA", "here")
    monkeypatch.setattr(subprocess, "Popen", Ended)
    job = Job("seed 0", [], 1, print)
    job.wait()
    assert "MASTER_PORT" not in job.process.env  # type: ignore[attr-defined]
    assert job.process.env["STSBP_DATA"] == "here"  # type: ignore[attr-defined]


def test_a_run_that_goes_on_under_a_launcher_has_its_threads(
    train_tiny: Call, stsbp: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are known once the settings are shared. `evaluate` leaves those that the launcher divided."""
    run, limits = tmp_path / "run", list[int]()
    assert train_tiny(run, "--epochs", 1, "--threads", 1).exit_code == 0
    for name in ("train", "evaluate"):
        monkeypatch.setattr(f"stsbp.cli.{name}.limit_threads", limits.append)
        monkeypatch.setattr(f"stsbp.cli.{name}.meeting", lambda *_: Rendezvous(0, 2, 0))
        monkeypatch.setattr(f"stsbp.cli.{name}.choose_backend", lambda *_: open_backend("numpy"))
        monkeypatch.setattr(f"stsbp.cli.{name}.join", lambda *_: Group())
    for command in (("train", "--resume", run), ("evaluate", run), ("evaluate", run, "--threads", 2)):
        result = stsbp(*command)
        assert result.exit_code == 0, result.output
    assert limits == [0, 1, 0, 2]


def test_saving_is_announced_before_every_file(
    train_tiny: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activities: list[str] = []
    monkeypatch.setattr(Group, "beat", lambda _group, activity: activities.append(activity))
    assert train_tiny(tmp_path / "run", "--epochs", 1).exit_code == 0
    saved = [activity for activity in activities if activity.startswith("saving")]
    assert saved == ["saving metrics", "saving last", "saving best", "saving metrics", "saving last"]


def test_one_process_is_a_group_of_its_own() -> None:
    group = Group()
    assert group.share({"a": 1}) == {"a": 1}
    assert group.gather([1.0, 2.0]).tolist() == [[1.0, 2.0]]
    assert group.gather_values("x") == ["x"]
    assert (group.part(7).first, group.part(7).count) == (0, 7)
    assert group.one_by_one(lambda: 3) == 3
    stop_together(StopRequest(), group)


def test_workload_names_the_slowest_and_the_time_in_exchanges() -> None:
    load = Workload(3)
    load.add(np.array([1.0, 2.0, 1.0]), np.zeros(3))
    assert load.figures() == {"processes": 3}  # exchanges within compiled programs are not seen
    load = Workload(3)
    load.add(np.array([1.0, 1.5, 0.5]), np.array([1.0, 0.5, 1.5]))
    load.add(np.array([1.0, 1.5, 0.5]), np.array([2.0, 1.5, 2.5]))
    assert load.figures() == {"processes": 3, "slowest_rank": 1, "exchange_share": 0.6}
    assert Workload(1).figures() == {}
    course = Course(10, 5)
    assert course.exchange == ""
    course.workload = Workload(1)
    assert course.exchange == ""
    course.workload = load
    assert course.exchange == "exchange 60%  slowest rank 1"


@pytest.mark.parametrize("text", ["", "x", "-1", "9" * 30])
def test_parent_is_none_if_the_variable_names_no_socket(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launcher.LAUNCHER, text)
    assert launcher.parent() is None
    assert launcher.LAUNCHER not in os.environ


def test_modules_of_the_current_folder_take_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("stsbp", "random"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('it was run')")
    started = launcher.Started(["--version"], {}, 5, stdout=subprocess.DEVNULL)
    assert started.process.wait(60) == 0
