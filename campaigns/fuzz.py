"""Hostile inputs by the thousand: `python -m campaigns.fuzz --help`, or `nox -s fuzz -- --help`.

Workers are forked from a process that has imported everything; each has a world of its own and runs case after case.
What a worker does not survive (a hang, too much memory, a signal) is a fault of its case.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import click

from campaigns.calls import Complaint, aligned, progress_line
from campaigns.cases import Case, Kind, run_case
from campaigns.kinds import GROUPS, KINDS
from campaigns.small_files import EVIL
from campaigns.worlds import World, scratch_folder

__all__ = ["CaseFault", "Tally", "command", "fuzz", "run_watched"]

HANG = 20.0
"""Seconds by the clock after which a case hangs, without those in which other work had all processors."""
MOST_MEMORY = 3 << 29
"""Bytes of address space that a case may take, with all processes that it starts."""
_GROWN = 1 << 29
"""Bytes of address space that the cases of a worker may leave behind. After that, a new worker takes its place."""
MOST_FILE = 5 << 28
"""Largest size of a file in bytes that a case may write."""
KEPT = 2
"""Cases that are kept of the same fault."""
_CHUNK_SECONDS = 1.0
_SAID_EVERY = 30.0


@dataclass
class CaseFault:
    """A fault: its name, the same for the same fault, what it looked like, and a case that shows it."""

    name: str
    text: str
    case: str

    def save(self, folder: Path, kind: str) -> Path:
        """Keep the case and what it did; returns the file to replay."""
        digest = hashlib.sha256(self.case.encode()).hexdigest()[:12]
        path = folder / f"{kind}-{digest}.json"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(self.case, encoding="utf-8")
        replay_command = shlex.join(["nox", "-s", "fuzz", "--", "--replay", str(path)])
        path.with_suffix(".txt").write_text(
            f"{self.name}\n{replay_command}\n\n{self.text}\n", encoding="utf-8", errors="replace"
        )
        return path


@dataclass
class Tally:
    """What came of the cases of a kind."""

    cases: int = 0
    accepted: int = 0
    commands: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)


def _generator(kind: str, seed: int, number: int) -> random.Random:
    return random.Random(f"{kind} {seed} {number}")


def fault_name(error: BaseException) -> str:
    """What names a fault: the first line of a complaint, else the exception and the place that raised it."""
    if isinstance(error, Complaint):
        return str(error).split("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if f"{os.sep}campaigns{os.sep}" not in frame.filename] or frames[-1:]
    last = outside[-1]
    # Of a library's error, also the line of ours that called it.
    ours = next((f for f in reversed(outside) if "stsbp" in f.filename), last)
    places = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (ours, last))
    return f"{type(error).__name__} at {' < '.join(places)}"


def run_watched(kind: Kind, case: Case, world: World) -> tuple[bool, CaseFault | None]:
    """Run a case; returns whether the input was accepted, and the fault where there is one."""
    began, memory = _used()
    try:
        accepted = run_case(kind, case, world)
        if _refused:
            raise Complaint(_refused[0])
        now, grown = _used()
        if now - began > kind.seconds:
            raise Complaint(f"more than {kind.seconds:g} seconds of processor time\n{now - began:.1f}")
        if grown - memory > kind.memory:
            raise Complaint(f"more than {kind.memory >> 20} MB of memory\n{grown - memory >> 20} MB")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not case.arguments:
            raise
        shown = "".join(traceback.format_exception(error, chain=False))
        return False, CaseFault(fault_name(error), shown[-6000:], case.to_json())
    finally:
        _refused.clear()
    return accepted, None


def _used() -> tuple[float, int]:
    """Seconds of processor time, and the largest memory in bytes so far, of this process and those that it started."""
    this, children = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in (this, children))
    return seconds, max(this.ru_maxrss, children.ru_maxrss) * 1024


_refused: list[str] = []
"""What the guard of this process refused during the case: the product may catch the complaint itself."""


def _guard(root: Path) -> None:
    """Let this process write below `root` only, and import and unpickle nothing that a case names."""
    inside = (os.path.realpath(root) + os.sep, "/dev/null", "/dev/shm/", "/proc/self/")
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def refuse(complaint: str) -> NoReturn:
        _refused.append(complaint)
        raise Complaint(complaint)

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        named: tuple[tuple[Any, int], ...]
        # `import` is no event of importlib.import_module; running the code of a module is.
        if event == "exec" and EVIL in (code := Path(arguments[0].co_filename)).with_suffix("").parts:
            refuse(f"a module was imported that a case names\n{code}")
        if event == "pickle.find_class" and "numba" not in sys.modules:
            refuse(f"something was unpickled\n{arguments!r}")
        if event == "open":
            named = ((arguments[0], -1),) if isinstance(arguments[2], int) and arguments[2] & flags else ()
        elif event in ("os.rename", "os.link"):
            named = ((arguments[0], arguments[2]), (arguments[1], arguments[3]))
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.symlink"):
            named = ((arguments[event == "os.symlink"], -1 if event == "os.truncate" else arguments[-1]),)
        else:
            return
        for path, folder in named:
            if isinstance(path, str | bytes | os.PathLike):
                parent = "" if folder == -1 else os.readlink(f"/proc/self/fd/{folder}")
                full = os.path.abspath(os.path.join(parent, os.fsdecode(path)))
                if not f"{full}{os.sep}".startswith(inside):
                    refuse(f"a write outside of the case's folders\n{event} {full!r}")

    # The complaint of an imported module is that it was imported, not that its bytecode is a new file.
    sys.dont_write_bytecode = True
    sys.addaudithook(check)


def _address_space() -> int:
    """Bytes of address space of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MOST_MEMORY,) * 2)
    # Python ignores the signal, and writing fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE,) * 2)


def _work(pipe: Connection, started: Any, root: Path) -> None:
    try:
        _serve(pipe, started, root)
    except Exception:
        pipe.send_bytes(json.dumps({"broken": traceback.format_exc()}).encode())


def _serve(pipe: Connection, started: Any, root: Path) -> None:
    """Build a world and run the chunks of cases that come through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(root / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    world = World(root / "world")
    current = root / "current"
    os.environ["STSBP_CACHE"] = str(root / "kernels")
    # What is opened in an open folder looks as if it were in the current one.
    os.chdir(root)
    _guard(root)
    _limit_memory()
    first_size = _address_space()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pipe.send_bytes(b"{}")
    while True:
        kind_name, seed, first, end = json.loads(pipe.recv_bytes())
        kind, tally, faults = KINDS[kind_name], Tally(), []
        saved_faults: Counter[str] = Counter()
        began = time.monotonic()
        number = first
        while number < end and (number == first or time.monotonic() - began < 5 * _CHUNK_SECONDS):
            started[0], started[1], started[2] = number, time.monotonic(), _kept_waiting(os.getpid())
            case = kind.make(_generator(kind_name, seed, number), world)
            if case.arguments:
                current.write_text(case.to_json(), encoding="utf-8")
            accepted, fault = run_watched(kind, case, world)
            if fault is None and (written := os.fstat(log).st_size):
                os.ftruncate(log, 0)
                fault = CaseFault("something was written past Python's streams", f"{written} bytes", case.to_json())
            tally.cases += 1
            tally.accepted += accepted
            tally.commands += bool(case.arguments)
            if fault is not None:
                tally.faults[fault.name] += 1
                saved_faults[fault.name] += 1
                if saved_faults[fault.name] <= KEPT:
                    faults.append(vars(fault))
            if case.arguments:
                current.unlink(missing_ok=True)
            number += 1
        started[1] = 0.0
        # Compiled code and caches stay. They must not take the memory of later cases.
        full = _address_space() - first_size > _GROWN
        result = {**vars(tally), "seconds": time.monotonic() - began, "found": faults, "next": number, "full": full}
        pipe.send_bytes(json.dumps(result).encode())


def _kept_waiting(pid: int) -> float:
    """Seconds in which a process, and those that it waits for, were ready to run but had no processor; 0: unknown."""
    seconds = 0.0
    with contextlib.suppress(OSError, ValueError, IndexError):
        seconds = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            seconds += _kept_waiting(int(child))
    return seconds


class _Worker:
    """A process that runs cases, and what it does now."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self.root = Path(tempfile.mkdtemp(prefix="worker-", dir=folder))
        self.pipe, theirs = context.Pipe()
        self.started = context.RawArray("d", 3)
        self.process = context.Process(target=_work, args=(theirs, self.started, self.root), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.chunk: tuple[str, int, int] | None = None

    def give(self, kind: str, seed: int, first: int, end: int) -> None:
        """Hand out numbers of cases."""
        self.chunk = kind, first, end
        self.started[0], self.started[1] = first, time.monotonic()
        self.pipe.send_bytes(json.dumps([kind, seed, first, end]).encode())

    @property
    def hangs(self) -> bool:
        """Whether its case has taken too long."""
        pid, seconds = self.process.pid, time.monotonic() - self.started[1]
        if self.chunk is None or not self.started[1] or seconds < HANG or pid is None:
            return False
        return bool(seconds - (_kept_waiting(pid) - self.started[2]) > HANG)

    def case(self, seed: int) -> Case:
        """The case that it was at when it ended."""
        assert self.chunk is not None
        with contextlib.suppress(OSError, ValueError, KeyError):
            return Case.from_json((self.root / "current").read_text(encoding="utf-8"))
        kind = self.chunk[0]
        world = World(self.root / "again")
        return KINDS[kind].make(_generator(kind, seed, int(self.started[0])), world)

    def end(self) -> None:
        """Stop the process and remove its world."""
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.root, ignore_errors=True)


@dataclass
class _Queue:
    """Numbers of cases that are still to be given out, kind by kind."""

    remaining: dict[str, int | None]
    """Cases still to be given out; None: as many as there is time for."""
    next: dict[str, int] = field(default_factory=dict)
    pace: dict[str, float] = field(default_factory=dict)
    share_used: dict[str, float] = field(default_factory=dict)
    unfinished: list[tuple[str, int, int]] = field(default_factory=list)

    def take(self) -> tuple[str, int, int] | None:
        """The next numbers; of the kind that is farthest from its share."""
        if self.unfinished:
            return self.unfinished.pop()
        waiting = [kind for kind, count in self.remaining.items() if count is None or count > 0]
        if not waiting:
            return None
        kind = min(waiting, key=lambda name: self.share_used.get(name, 0.0))
        first, remaining = self.next.get(kind, 0), self.remaining[kind]
        count = max(1, round(_CHUNK_SECONDS * self.pace.get(kind, 5.0)))
        count = count if remaining is None else min(count, remaining)
        self.next[kind] = first + count
        if remaining is not None:
            self.remaining[kind] = remaining - count
        self.share_used[kind] = self.share_used.get(kind, 0.0) + (count if remaining is not None else _CHUNK_SECONDS)
        return kind, first, first + count


def _shares(kinds: list[str], cases: int) -> dict[str, int]:
    total_weight = sum(KINDS[kind].weight for kind in kinds)
    return {kind: max(1, round(cases * KINDS[kind].weight / total_weight)) for kind in kinds}


def fuzz(
    kinds: list[str], *, cases: int | None, seconds: float, seed: int, jobs: int, out: Path
) -> tuple[dict[str, Tally], list[Path]]:
    """Run a campaign; returns what came of each kind, and the files of the faults that were found.

    Args:
        kinds: names of the kinds.
        cases: in all, shared out by the weights of the kinds; None: as many as fit into the seconds.
        seconds: at most.
        seed: cases are a function of it, their kind and their number.
        jobs: worker processes.
        out: folder of what is found.
    """
    tallies, saved = {kind: Tally() for kind in kinds}, list[Path]()
    queue = _Queue(dict.fromkeys(kinds) if cases is None else dict(_shares(kinds, cases)))
    began = reported = time.monotonic()
    until = began + seconds
    folder = scratch_folder("fuzz")
    for module in dict.fromkeys(module for kind in kinds for module in KINDS[kind].modules):
        importlib.import_module(module)

    def keep(kind: str, fault: CaseFault) -> None:
        if tallies[kind].faults[fault.name] <= KEPT or fault.name not in saved_names[kind]:
            saved_names[kind].add(fault.name)
            saved.append(fault.save(out, kind))
            click.echo(f"{kind}: {fault.name}\n  {saved[-1]}")

    saved_names: dict[str, set[str]] = {kind: set() for kind in kinds}
    workers = [_Worker(folder) for _ in range(jobs)]
    try:
        while any(worker.chunk for worker in workers) or time.monotonic() < until:
            for worker in workers:
                if worker.ready and worker.chunk is None and time.monotonic() < until and (numbers := queue.take()):
                    worker.give(numbers[0], seed, *numbers[1:])
            if all(worker.ready and worker.chunk is None for worker in workers):
                break
            readable = wait([worker.pipe for worker in workers], timeout=0.5)
            for at, worker in enumerate(workers):
                if worker.pipe in readable:
                    try:
                        result = json.loads(worker.pipe.recv_bytes())
                    except (EOFError, OSError):
                        result = None
                elif worker.hangs:
                    result = None
                else:
                    continue
                if result is not None and "broken" in result:
                    raise RuntimeError(f"the campaign itself is broken:\n{result['broken']}")
                if result is None:
                    _bury(worker, seed, tallies, keep, queue)
                    workers[at] = _Worker(folder)
                elif worker.chunk is None:
                    worker.ready = True
                else:
                    kind, _, end = worker.chunk
                    worker.chunk = None
                    _add(tallies[kind], result)
                    if result["next"] < end:
                        queue.unfinished.append((kind, result["next"], end))
                    queue.pace[kind] = result["cases"] / max(0.01, result["seconds"])
                    for fields in result["found"]:
                        keep(kind, CaseFault(**fields))
                    if result["full"]:
                        worker.end()
                        workers[at] = _Worker(folder)
            if time.monotonic() - reported > _SAID_EVERY:
                reported = time.monotonic()
                click.echo(_progress(tallies, cases, reported - began, until - reported), err=True)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
    finally:
        for worker in workers:
            worker.end()
        shutil.rmtree(folder, ignore_errors=True)
    return tallies, saved


def _progress(tallies: dict[str, Tally], cases: int | None, seconds: float, remaining: float) -> str:
    """Number of cases, rate, faults and time that is left, for people."""
    done = sum(tally.cases for tally in tallies.values())
    faults = sum(tally.faults.total() for tally in tallies.values())
    if cases is not None:
        remaining = min(remaining, (cases - done) * seconds / max(1, done))
    return progress_line(done, faults, seconds, remaining)


def _add(tally: Tally, result: dict[str, Any]) -> None:
    for name in ("cases", "accepted", "commands", "seconds"):
        setattr(tally, name, getattr(tally, name) + result[name])
    tally.faults.update(result["faults"])


def _bury(worker: _Worker, seed: int, tallies: dict[str, Tally], keep: Any, queue: _Queue) -> None:
    """Write down what ended a worker, and let another go on after that case."""
    if worker.chunk is None:
        log = (worker.root / "log").read_text(encoding="utf-8", errors="replace")
        worker.end()
        raise RuntimeError(f"a worker could not begin:\n{log}")
    name = f"hangs for {HANG:g} s" if worker.hangs else "the process died"
    worker.process.kill()
    worker.process.join()
    kind, first, end = worker.chunk
    number = int(worker.started[0])
    case = worker.case(seed)
    tallies[kind].cases += number + 1 - first
    tallies[kind].faults[name] += 1
    keep(kind, CaseFault(name, f"exit code {worker.process.exitcode}", case.to_json()))
    if number + 1 < end:
        queue.unfinished.append((kind, number + 1, end))
    worker.end()


def replay(path: Path) -> CaseFault | None:
    """Run a case that was kept, in a process of its own."""
    case = Case.from_json(path.read_text(encoding="utf-8"))
    folder = Path(tempfile.mkdtemp(prefix="stsbp-replay-"))
    answer = folder / "answer"
    try:
        child = os.fork()
        if child == 0:
            world = World(folder / "world")
            os.environ["STSBP_CACHE"] = str(folder / "kernels")
            os.chdir(folder)
            for module in KINDS[case.kind].modules:
                importlib.import_module(module)
            _guard(folder)
            _limit_memory()
            signal.alarm(round(HANG))
            _, fault = run_watched(KINDS[case.kind], case, world)
            answer.write_text(json.dumps(fault and vars(fault)), encoding="utf-8")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if answer.exists():
            values = json.loads(answer.read_text(encoding="utf-8"))
            return None if values is None else CaseFault(**values)
        code = os.waitstatus_to_exitcode(status)
        name = f"hangs for {HANG:g} s" if code == -signal.SIGALRM else "the process died"
        return CaseFault(name, f"exit code {code}", case.to_json())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(tallies: dict[str, Tally]) -> str:
    """Cases, command lines, accepted inputs and faults of each kind."""
    rows = [("kind", "cases", "commands", "accepted", "seconds", "faults")]
    for kind, tally in tallies.items():
        share = f"{tally.accepted / max(1, tally.cases):.0%}"
        rows.append(
            (kind, f"{tally.cases:,}", f"{tally.commands:,}", share, f"{tally.seconds:.0f}", str(tally.faults.total()))
        )
    cases, commands = (sum(getattr(t, name) for t in tallies.values()) for name in ("cases", "commands"))
    faults = sum(tally.faults.total() for tally in tallies.values())
    rows.append(("all", f"{cases:,}", f"{commands:,}", "", "", str(faults)))
    return aligned(rows)


def _chosen(texts: tuple[str, ...]) -> list[str]:
    """The kinds that the words of `--kind` name, each once."""
    words = [word for text in texts for word in text.split(",")]
    if unknown := [word for word in words if word not in KINDS and word not in GROUPS]:
        raise click.BadParameter(f"there is no kind {unknown[0]}; there are: {', '.join((*KINDS, *GROUPS))}")
    return list(dict.fromkeys(kind for word in words for kind in GROUPS.get(word, (word,)))) or list(KINDS)


@click.command()
@click.option("--cases", type=click.IntRange(1), help="Inputs in all.  [default: as many as fit into --seconds]")
@click.option("--seconds", type=float, help="At most so long.  [default: 120, or without end where --cases is given]")
@click.option(
    "--kind",
    "--kinds",
    "kinds",
    multiple=True,
    callback=lambda _ctx, _param, texts: _chosen(texts),
    metavar="KIND,...",
    help=f"Only these: {', '.join((*KINDS, *GROUPS))}.",
)
@click.option("--seed", default=0, show_default=True, help="Another seed gives other inputs.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option(
    "--out", default="build/fuzz", show_default=True, type=click.Path(path_type=Path), help="For what is found."
)
@click.option(
    "--replay", "replay_path", type=click.Path(exists=True, path_type=Path), help="Run one input that was found."
)
def command(
    cases: int | None,
    seconds: float | None,
    kinds: list[str],
    seed: int,
    jobs: int,
    out: Path,
    replay_path: Path | None,
) -> None:
    """Throw hostile inputs at the readers and the command line; what goes wrong is kept with the command to see it."""
    if replay_path is not None:
        fault = replay(replay_path)
        click.echo("nothing is wrong with it now" if fault is None else f"{fault.name}\n\n{fault.text}")
        sys.exit(fault is not None)
    limit = seconds if seconds is not None else 120.0 if cases is None else float("inf")
    began = time.monotonic()
    tallies, saved = fuzz(kinds, cases=cases, seconds=limit, seed=seed, jobs=jobs, out=out)
    click.echo(table(tallies))
    click.echo(f"seed {seed}, {jobs} jobs, {time.monotonic() - began:.0f} s; {len(saved)} inputs kept in {out}")
    sys.exit(bool(saved))


if __name__ == "__main__":
    command()
