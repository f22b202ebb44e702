"""Mutation testing: breaks the sources in one place at a time and sees whether a test notices.

    python tools/mutation.py --named                            the places that tests once missed
    python tools/mutation.py --seed 1 --random 60 --subtle 20   drawn over the packages in turn
    python tools/mutation.py --only packages/stsbp-spec/src/stsbp_spec/contract/grid.py
    python tools/mutation.py --only packages/stsbp-spec/src/stsbp_spec/contract/grid.py:204 --list
    python tools/mutation.py --files 'packages/stsbp/*' --random 100 --stages 1 --minutes 30 --resume
    python tools/mutation.py --files 'packages/stsbp-spec/*' --random 60 --warm --nearest 20 --stages 0

The last but one tries each mutant against the first run of pytest of its file alone, stops after half an hour and goes
on where it stopped when it is called again. What is left open then goes through all runs without `--stages`. The last
one tries the quickest tests that execute the line, 20 seconds of them, as nearest.py recorded them before.

Works on copies of the tree, never on the tree itself. mutation.toml beside this file says which tests hold which
sources, which mutants are the same program, and why. A mutant is killed by the first test that fails, if that test
passes without it, or by taking longer than the limit, if the tests end in time without it. Exit code 1: a mutant
survived; 2: none did, but some are open, unclear or untried.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mutants import Key, Mutant, changes, collapsed, mutants_of, read
from nearest import Lines

ROOT = Path(__file__).resolve().parents[1]
RULES = Path(__file__).with_suffix(".toml")
WARM = Path(__file__).with_name("warm.py")
SOURCES = ("packages/*/src/**/*.py", "packages/*/src/**/*.cu", "packages/*/src/**/*.cuh")


@dataclass
class Result:
    """What became of a mutant.

    Attributes:
        mutant: the change.
        status: `killed`, `timeout` (killed as well), `survived`, `equivalent`, `open` (survived the runs of pytest that
            were asked for, not all), or `unclear` (a test failed that fails without the mutant too, or takes too long).
        by: the test that failed, or the reason.
        seconds: how long it took.
    """

    mutant: Mutant
    status: str
    by: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Rules:
    """mutation.toml."""

    groups: dict[str, list[str]]
    tests: list[dict[str, Any]]
    equivalent: list[dict[str, str]]
    excluded: list[dict[str, str]]
    named: list[dict[str, str]]
    preloaded: list[str] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)

    def excluded_file(self, path: str) -> bool:
        return any(fnmatch(path, rule["file"]) for rule in self.excluded)

    def why_equivalent(self, mutant: Mutant) -> str | None:
        """The reason why a mutant is the same program; None where it is not listed."""
        for rule in self.equivalent:
            if (
                fnmatch(mutant.path, rule["file"])
                and collapsed(rule["line"]) == mutant.context
                and fnmatch(mutant.change, rule["change"])
            ):
                return rule["reason"]
        return None

    def stages(self, path: str) -> list[list[str]]:
        """Runs of pytest for a file, the likeliest first: a mutant survives when all of them pass.

        `{stem}` is the file's name; a run that names a file which is not there is left out.
        """
        # cosmic-ray runs the same tests for every file.
        for rule in self.tests:
            if fnmatch(path, rule["file"]):
                named = [[word.replace("{stem}", Path(path).stem) for word in stage] for stage in rule["stages"]]
                expanded = [[word for part in stage for word in self.groups.get(part, [part])] for stage in named]
                return [stage for stage in expanded if not stage[0].endswith(".py") or (ROOT / stage[0]).exists()]
        raise SystemExit(f"{RULES.name} names no tests for {path}")


def rules() -> Rules:
    """Read mutation.toml."""
    content = tomllib.loads(RULES.read_text(encoding="utf-8"))
    return Rules(**{name: content.get(name, []) for name in [f.name for f in fields(Rules)]})


def sources(rule: Rules) -> list[str]:
    """Files that are mutated, relative to the root."""
    paths = sorted({path for pattern in SOURCES for path in ROOT.glob(pattern)})
    return [name for path in paths if not rule.excluded_file(name := path.relative_to(ROOT).as_posix())]


def drawn(pool: dict[str, list[Mutant]], count: int, generator: random.Random) -> list[Mutant]:
    """`count` mutants, each package in turn giving one of its own."""
    # There are 15,000 mutants, and each takes minutes to test. mutmut and cosmic-ray draw no sample.
    order = {name: generator.sample(mutants, len(mutants)) for name, mutants in sorted(pool.items())}
    turns = itertools.chain.from_iterable(itertools.zip_longest(*order.values()))
    return list(itertools.islice((m for m in turns if m is not None and _real(m)), count))


def _real(mutant: Mutant) -> bool:
    return changes(mutant, read(ROOT, mutant.path))


def named(rule: Rules) -> list[Mutant]:
    """The mutants that mutation.toml names; says which are gone because their line was rewritten."""
    mutants = []
    for entry in rule.named:
        candidates = mutants_of(entry["file"], read(ROOT, entry["file"]))
        matching = [m for m in candidates if m.context == collapsed(entry["line"]) and m.change == entry["change"]]
        if not matching:
            print(f"gone: {entry['file']}: {entry['change']} in {entry['line']}")
        mutants += matching
    return mutants


@dataclass
class Copy:
    """A copy of the tree in which one mutant at a time is tried."""

    root: Path
    ticks: Iterable[int] = field(default_factory=lambda: itertools.count(1))
    preloaded: Sequence[str] | None = None
    _server: subprocess.Popen[str] | None = None

    @classmethod
    def make(cls, folder: Path, preloaded: Sequence[str] | None = None) -> Copy:
        """Copy every file that git knows or would add; with names of modules, fork the tests from one process."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
        )
        if listed.returncode:
            raise SystemExit(f"git ls-files failed in {ROOT}: {listed.stderr.decode().strip()}")
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        return cls(folder, preloaded=preloaded)

    def write(self, path: str, text: str) -> None:
        """Write a source; its time moves on, so that no bytecode of the text before is taken for it."""
        # The file is changed, as by cosmic-ray. mutmut 3 chooses between the mutants of a function at run time, but
        # numba, Triton and jax.jit compile a function only once.
        target = self.root / path
        target.write_bytes(text.encode())
        seconds = 1_000_000_000 + next(iter(self.ticks))
        os.utime(target, (seconds, seconds))

    def environment(self, caches: Path) -> dict[str, str]:
        paths = map(str, (*sorted(self.root.glob("packages/*/src")), self.root / "conformance" / "src"))
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONHASHSEED": "0",
            "STSBP_CACHE": str(caches / "stsbp"),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(caches / "hypothesis"),
            "NO_COLOR": "1",
        }

    def pytest(self, arguments: Sequence[str], caches: Path, limit: float) -> tuple[int | None, str]:
        """Run pytest until the first failure: exit code, None past the limit, and output."""
        words = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", *arguments]
        if self.preloaded is not None:
            return self._forked(words, caches, limit)
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *words], cwd=self.root, env=self.environment(caches),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return None, ""
        return process.returncode, output

    def _forked(self, words: list[str], caches: Path, limit: float) -> tuple[int | None, str]:
        """The same in a fork of a process that has imported the libraries."""
        environment, output = self.environment(caches), self.root.with_suffix(".txt")
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, str(WARM), *(self.preloaded or ())], cwd=self.root, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"arguments": words, "environment": environment, "output": str(output), "limit": limit}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        if not (answer := self._server.stdout.readline()):
            raise SystemExit(f"{WARM.name} ended with exit code {self._server.wait()}")
        code: int | None = json.loads(answer)
        return code, output.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """End the process that forks."""
        if self._server is not None:
            self._server.communicate()


_NO_SUCH_TEST = 4
_FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+(?:\[.*?\])?)(?= - |$)", re.MULTILINE)
"""A line of pytest's summary up to the message; what a test is parametrised with may hold ` - ` itself."""


class Campaign:
    """Tries mutants on `jobs` copies."""

    def __init__(
        self, rule: Rules, folder: Path, jobs: int, limit: float, *, stages: int | None = None, warm: bool = False,
        lines: Lines | None = None, nearest: float = 0, caches: Path | None = None,
    ) -> None:  # fmt: skip
        self.rule, self.folder, self.limit, self.stages = rule, folder, limit, stages
        self.lines, self.nearest = lines, nearest
        self.copies: queue.Queue[Copy] = queue.Queue()
        for number in range(jobs):
            self.copies.put(Copy.make(folder / f"copy{number}", rule.preloaded if warm else None))
        self.warm = caches or folder / "warm"
        # What nearest.py recorded passed then.
        self.sound: dict[str, bool] = dict.fromkeys(lines.seconds, True) if lines is not None else {}
        self.lock = threading.Lock()
        self.done = 0

    def check_isolation(self) -> None:
        """The copies are what the tests import."""
        copy = self.copies.get()
        script = "import stsbp, stsbp_spec; print(stsbp.__file__, stsbp_spec.__file__, sep='\\n')"
        run = subprocess.run(
            [sys.executable, "-c", script], env=copy.environment(self.warm), capture_output=True, text=True
        )
        self.copies.put(copy)
        if run.returncode or not all(Path(line).is_relative_to(copy.root) for line in run.stdout.split()):
            raise SystemExit(f"tests would not run on the copy {copy.root}: {run.stdout}{run.stderr}")

    def attempt(self, mutant: Mutant, total: int) -> Result:
        """What becomes of one mutant."""
        began = time.monotonic()
        if (reason := self.rule.why_equivalent(mutant)) is not None:
            result = Result(mutant, "equivalent", reason)
        else:
            copy = self.copies.get()
            original = read(copy.root, mutant.path)
            try:
                copy.write(mutant.path, mutant.applied(original))
                result = self._tested(copy, mutant, original)
            finally:
                copy.write(mutant.path, original)
                self.copies.put(copy)
        result.seconds = time.monotonic() - began
        with self.lock:
            self.done += 1
            print(f"{self.done}/{total} {result.status:10} {result.seconds:4.0f} s  {mutant}", flush=True)
            print(f"      {result.by}", flush=True)
        return result

    def _tested(self, copy: Copy, mutant: Mutant, original: str) -> Result:
        stages = self.rule.stages(mutant.path)
        near = self.lines.near(mutant, original, copy.root, self.nearest) if self.lines is not None else []
        for stage in [*([[*near, *self.rule.recorded]] if near else []), *stages[: self.stages]]:
            code, output = copy.pytest(stage, self.warm, self.limit)
            if code in (0, 5):  # 5: a word chose no test
                continue
            if code == _NO_SUCH_TEST:
                copy.write(mutant.path, original)
                if copy.pytest([*stage, "--collect-only"], self.warm, self.limit)[0] == _NO_SUCH_TEST:
                    return Result(mutant, "unclear", f"no such test without the mutant either: {' '.join(stage)}")
            if code is None:
                copy.write(mutant.path, original)
                if not self._ends(copy, stage):
                    return Result(mutant, "unclear", f"too long without the mutant too: {' '.join(stage)[:200]}")
                return Result(mutant, "timeout", f"more than {self.limit:g} s in {' '.join(stage)[:200]}")
            if code in (-signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL):
                return Result(mutant, "unclear", "the tests were stopped from outside")
            failed = [match[1] for match in _FAILED.finditer(output)]
            if code == 1 and failed and "::" in failed[0]:
                copy.write(mutant.path, original)
                if not self._passes(copy, failed[0], stage):
                    return Result(mutant, "unclear", f"fails without the mutant too: {failed[0]}")
                return Result(mutant, "killed", failed[0])
            lines = output.strip().splitlines() or ["no output"]
            return Result(mutant, "killed", f"exit code {code}: {failed[0] if failed else lines[-1]}")
        if self.stages is not None and self.stages < len(stages):
            return Result(mutant, "open", " ".join(stages[self.stages]))
        return Result(mutant, "survived")

    def close(self) -> None:
        """End what the copies started."""
        for copy in self.copies.queue:
            copy.close()

    def _ends(self, copy: Copy, stage: list[str]) -> bool:
        """Whether a run ends within the limit on the sources as they are."""
        name = " ".join(stage)
        if name not in self.sound:
            self.sound[name] = copy.pytest(stage, self.warm, self.limit)[0] is not None
        return self.sound[name]

    def _passes(self, copy: Copy, test: str, stage: list[str]) -> bool:
        """Whether a test passes on the sources as they are."""
        if test not in self.sound:
            chosen = list(itertools.dropwhile(lambda word: not word.startswith("-"), stage))
            code, _ = copy.pytest([test, *chosen], self.warm, self.limit)
            if code == _NO_SUCH_TEST:  # the mutant changed what it is parametrised with
                code, _ = copy.pytest([test.partition("[")[0], *chosen], self.warm, self.limit)
            self.sound[test] = code == 0
        return self.sound[test]


def chosen(options: argparse.Namespace, rule: Rules) -> list[Mutant]:
    """The mutants that the command line asks for."""
    mutants: list[Mutant] = named(rule) if options.named else []
    for place in options.only:
        path, _, line = place.partition(":")
        matching = [m for m in mutants_of(path, read(ROOT, path)) if (not line or m.line == int(line)) and _real(m)]
        if not matching:
            raise SystemExit(f"nothing to mutate at {place}")
        mutants += matching
    if options.random or options.subtle:
        pool: dict[str, list[Mutant]] = {}
        for path in sources(rule):
            if options.files and not any(fnmatch(path, pattern) for pattern in options.files):
                continue
            pool.setdefault(path.split("/")[1], []).extend(mutants_of(path, read(ROOT, path)))
        generator = random.Random(options.seed)
        mutants += drawn(pool, options.random, generator)
        subtle = {name: [m for m in mutants_of_package if m.subtle] for name, mutants_of_package in pool.items()}
        mutants += drawn(subtle, options.subtle, generator)
    return list(dict.fromkeys(mutants))


def main() -> None:
    """Parse the command line, try the mutants, print and save what became of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--named", action="store_true", help="the mutants that mutation.toml names")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="mutants of every kind")
    parser.add_argument("--subtle", type=int, default=0, metavar="N", help="comparisons, roundings and snaps")
    parser.add_argument("--seed", type=int, default=1, help="of the draw; default 1")
    parser.add_argument("--files", action="append", default=[], metavar="PATTERN", help="draw from these alone")
    parser.add_argument("--only", action="append", default=[], metavar="PATH[:LINE]", help="every mutant there")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="copies that are tested at a time; default 1")
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="of one run of pytest; default 300")
    parser.add_argument("--stages", type=int, metavar="N", help="a file's first N runs of pytest alone; default all")
    parser.add_argument("--nearest", type=float, metavar="S", help="before them, S seconds of tests of the line")
    parser.add_argument("--lines", type=Path, default=ROOT / "build" / "lines.json", help="what nearest.py recorded")
    parser.add_argument("--caches", type=Path, help="where compiled kernels stay for the next call")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no mutant after M minutes")
    parser.add_argument("--warm", action="store_true", help="fork pytest from one process (Linux)")
    parser.add_argument("--resume", action="store_true", help="keep what --json holds, try the rest")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "mutation.json", help="where results are written")
    parser.add_argument("--list", action="store_true", help="print the chosen mutants and stop")
    options = parser.parse_args()
    if not (options.named or options.random or options.subtle or options.only):
        options.named, options.random, options.subtle = True, 60, 20
    rule = rules()
    mutants = chosen(options, rule)
    if options.list:
        print(*mutants, sep="\n")
        return
    results = earlier_results(options, mutants) if options.resume else {}
    end = time.monotonic() + 60 * options.minutes if options.minutes is not None else math.inf
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        campaign = Campaign(
            rule, Path(folder), options.jobs, options.timeout, stages=options.stages, warm=options.warm,
            lines=Lines.load(options.lines) if options.nearest is not None else None, nearest=options.nearest or 0,
            caches=options.caches,
        )  # fmt: skip
        campaign.check_isolation()

        def attempt(mutant: Mutant) -> None:
            if time.monotonic() < end:
                result = campaign.attempt(mutant, len(mutants) - done)
                with campaign.lock:
                    results[mutant.key] = result
                    save(results.values(), options)

        done = len(results)
        with ThreadPoolExecutor(options.jobs) as threads:
            list(threads.map(attempt, [m for m in mutants if m.key not in results]))
        campaign.close()
    raise SystemExit(report([results.get(m.key) or Result(m, "untried") for m in mutants], options))


def earlier_results(options: argparse.Namespace, mutants: list[Mutant]) -> dict[Key, Result]:
    """What an earlier call found out and this one need not: `open` is kept while later runs are not asked for."""
    if not options.json.exists():
        return {}
    final = {"killed", "timeout", "equivalent", *(("open",) if options.stages is not None else ())}
    by_key = {m.key: m for m in mutants}
    results = {}
    for row in json.loads(options.json.read_text(encoding="utf-8"))["mutants"]:
        mutant = by_key.get((row["file"], row["context"], row["change"]))
        if mutant is not None and row["status"] in final:
            results[mutant.key] = Result(mutant, row["status"], row["by"], row["seconds"])
    return results


def counted(results: Iterable[Result]) -> dict[str, int]:
    """How many there are of each status."""
    counts = Counter(r.status for r in results)
    return {s: counts[s] for s in ("killed", "timeout", "survived", "open", "equivalent", "unclear", "untried")}


def save(results: Collection[Result], options: argparse.Namespace) -> None:
    """Write the JSON."""
    table = [
        {"file": r.mutant.path, "line": r.mutant.line, "context": r.mutant.context, "change": r.mutant.change,
         "status": r.status, "by": r.by, "seconds": round(r.seconds, 1)}
        for r in results
    ]  # fmt: skip
    options.json.parent.mkdir(parents=True, exist_ok=True)
    content = {"seed": options.seed, "counts": counted(results), "mutants": table}
    part = options.json.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(options.json)


def report(results: list[Result], options: argparse.Namespace) -> int:
    """Print the table, write the JSON, and return the exit code."""
    save(results, options)
    counts = counted(results)
    print(f"\n{len(results)} mutants: " + ", ".join(f"{n} {status}" for status, n in counts.items() if n))
    for result in results:
        if result.status in ("survived", "open", "unclear"):
            print(f"{result.status}: {result.mutant}\n      {result.by}")
    if counts["survived"]:
        return 1
    return 2 if counts["open"] or counts["unclear"] or counts["untried"] or not results else 0


if __name__ == "__main__":
    main()
