"""Everything that wants a GPU, in parts, those first that say most: `benchmarks/gpu/run.sh OUT [PART...]`.

Each part is one or more commands, at once where nothing is timed. What a command found lies in OUT, NAME.log and its
results; OUT/summary.json has of each what was expected, what was seen and a verdict. OUT/results.tar.gz has all of it:
unpacked into OUT on another machine, a call goes on there. A command that has ended well is not run again, so a call
that was cut off, or that ended with exit code 75, is made again with the same OUT. Exit codes: 0: nothing failed,
though something may be slower than expected; 1: something failed; 75: there is more to do.

PART is the beginning of a part's name; without one, all parts run. `--list` shows them, and `--try` runs the commands
on the processor with small sizes, so that a broken one is found before a GPU is at hand. From the environment:

    BACKENDS    NAME@DEVICE of each backend                     [torch@cuda cupy@cuda jax@gpu]
    SCALE       factor of the sizes                             [1]
    SHRINK      divisor of the sizes of scaling.py              [1]
    GPUS        processes of the part on several GPUs           [as many as torch sees]
    STSBP_DATA  folder with cifar10/: train the full presets    [none: they are left out]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(Path(__file__).parent)]

NEEDED = ("numpy", "click", "pydantic", "rich", "safetensors", "sklearn", "threadpoolctl", "numba", "pytest")
"""What the packages and this script import, beside frameworks."""
SHARDS = {
    "arithmetic": "tier1 or tier2",
    "gradients": "tier3",
    "reproducible": "tier4",
    "pairs": "tier5",
    "trainer": "tier6 or tier7 or tier8",
}
"""The conformance suite in parts of like length."""

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """One program.

    Attributes:
        name: of its files in OUT.
        arguments: program and its arguments.
        judge: what it found, from OUT and its exit code: `expected`, `seen` and `verdict`.
        environment: beside that of this process; `{minutes}` in it is the time that is left, less what saving takes.
    """

    name: str
    arguments: tuple[str, ...]
    judge: Callable[[Path, int], Outcome]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Commands that run at once, or one after the other; `seconds` is how long the part may take, all in all."""

    name: str
    commands: tuple[Command, ...]
    together: bool = False
    seconds: int = 470


@dataclass(frozen=True)
class Settings:
    """Of a call.

    Attributes:
        out: folder of results.
        backends: names and devices.
        scale, shrink: factor of the sizes, and a divisor of those of `scaling.py`.
        trial: whether the commands are only tried.
        gpus: GPUs of this machine.
        data: folder of data sets; None: embedded ones.
    """

    out: Path
    backends: tuple[tuple[str, str], ...]
    scale: float
    shrink: int
    trial: bool
    gpus: int
    data: Path | None


def python_command(*arguments: object) -> tuple[str, ...]:
    """A Python program and its arguments."""
    return (sys.executable, *map(str, arguments))


def ended_well(out: Path, code: int) -> Outcome:
    """A command whose results are for people."""
    return {"expected": "exit code 0", "seen": f"exit code {code}", "verdict": "as expected" if code == 0 else "failed"}


def tests(name: str) -> Callable[[Path, int], Outcome]:
    """A judge of pytest's report."""

    def judge(out: Path, code: int) -> Outcome:
        report = out / f"{name}.xml"
        if not report.is_file():
            return {**ended_well(out, code), "verdict": "failed"}
        suite = next(ElementTree.parse(report).iter("testsuite"))
        count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        failed_cases = [case for case in suite.iter("testcase") if any(case.find(kind) is not None for kind in _WRONG)]
        failures, passed = count["failures"] + count["errors"], count["tests"] - sum(list(count.values())[1:])
        return {
            "expected": "0 failed, at least 1 passed",
            "seen": f"{passed} passed, {failures} failed, {count['skipped']} skipped",
            "failed": [_reason(case) for case in failed_cases[:20]],
            "verdict": "as expected" if code == 0 and passed and not failures else "failed",
        }

    return judge


_WRONG = ("failure", "error")


def _reason(case: ElementTree.Element) -> str:
    problem = next(element for kind in _WRONG if (element := case.find(kind)) is not None)
    return f"{case.get('name')}: {str(problem.get('message'))[:300]}"


def rows(name: str, backend: str, settings: Settings) -> Callable[[Path, int], Outcome]:
    """A judge of a report of `stsbp benchmark` or steps.py: each time beside the expected one."""

    def judge(out: Path, code: int) -> Outcome:
        path = out / f"{name}.json"
        if code != 0 or not path.is_file():
            return {**ended_well(out, code), "verdict": "failed"}
        import expected
        from stsbp.benchmarks.cases import CASES

        gpu, gpu_title = gpu_of(out)
        expectations = [*expected.kernels(gpu, backend, settings.scale)]
        expectations += [expected.step(gpu, backend, case, settings.scale) for case in CASES.values()]
        by_name = {(row.case, row.what): row for row in expectations}
        compared = list[Outcome]()
        for row in json.loads(path.read_text())["rows"]:
            match = by_name.get((row["case"], row["what"].removesuffix(", recorded")))
            if match is None or row["seconds"] is None:
                continue
            seconds = match.recorded if row["what"].endswith(", recorded") and match.recorded else match.seconds
            measured = row["seconds"]["median"]
            compared.append(
                {
                    "what": f"{row['what']}, {row['case']}",
                    "ms": round(1e3 * measured, 4),
                    "expected_ms": round(1e3 * seconds, 4),
                    "of_copy": row["ratio"] if row["floor"] == "copy" else None,
                    "verdict": "tried" if settings.trial else expected.verdict(measured, seconds),
                }
            )
        slow = sum(not row["verdict"].endswith("as expected") for row in compared)
        summary = (
            f"{len(compared)} times"
            if settings.trial
            else f"{len(compared) - slow} of {len(compared)} times as expected"
        )
        return {"expected": f"times on paper of {gpu_title}", "seen": summary, "rows": compared, "verdict": "compared"}

    return judge


def gpu_of(out: Path) -> tuple[Any, str]:
    """The GPU whose peak numbers are taken, and its name in words: the machine's own, else an H100."""
    import expected

    path = out / "machine.json"
    name = str(json.loads(path.read_text()).get("gpu", "")) if path.is_file() else ""
    gpu = expected.GPUS["h200" if "H200" in name else "h100"]
    return gpu, gpu.name if gpu.name[:4] in name else f"{gpu.name}, though this is {name or 'no GPU'}"


def machine(settings: Settings) -> Callable[[Path, int], Outcome]:
    """A judge of machine.json: every backend's device can be used."""

    def judge(out: Path, code: int) -> Outcome:
        path = out / "machine.json"
        if code != 0 or not path.is_file():
            return {**ended_well(out, code), "verdict": "failed"}
        report = json.loads(path.read_text())
        problems = {}
        for name, device in settings.backends:
            listed = report["backends"].get(name, "not found")
            usable = isinstance(listed, list) and any(
                entry["name"].split(":")[0] == device.split(":")[0] and entry["problem"] is None for entry in listed
            )
            if not usable:
                problems[f"{name}@{device}"] = listed
        speeds = report.get("ceilings", {})
        shares = {name: round(speed["measured"] / speed["assumed"], 2) for name, speed in speeds.items()}
        return {
            "expected": f"usable: {', '.join(f'{name}@{device}' for name, device in settings.backends)}",
            "seen": problems or f"all of them; of the assumed speeds {shares or 'nothing'}",
            "verdict": "failed" if problems else "as expected",
        }

    return judge


def parts(settings: Settings) -> Iterator[Part]:
    """All parts, those first that say most."""
    trial, out = settings.trial, settings.out
    plugin = () if _registered("stsbp_conformance") else ("-p", "stsbp_conformance.plugin")

    def pytest(name: str, *arguments: object, graphs: bool = False) -> Command:
        report = ("-q", "-p", "no:cacheprovider", "--junit-xml", out / f"{name}.xml")
        environment = {"STSBP_CUDA_GRAPHS": "1"} if graphs else {}
        return Command(name, python_command("-m", "pytest", *plugin, *report, *arguments), tests(name), environment)

    def suite(name: str, backend: str, device: str, *arguments: object, graphs: bool = False) -> Command:
        selection = ("-k", "tier1 and two") if trial else ()
        options = ("--backend", backend, "--device", f"{backend}={device}", "--conformance-json", out / f"{name}.json")
        return pytest(name, "conformance/tests/test_suite.py", *options, *arguments, *selection, graphs=graphs)

    yield Part(
        "machine",
        (Command("machine", python_command("benchmarks/gpu/machine.py", out / "machine.json"), machine(settings)),),
    )
    stems = [(backend, device, f"{backend}-{device.replace(':', '')}") for backend, device in settings.backends]
    quick = list[Command]()
    for backend, device, stem in stems:
        if not trial:
            hash_options = ("--quick",) if backend == "jax" else ()
            hashed = python_command("-m", "stsbp_conformance.hashes", f"{backend}={device}", *hash_options)
            quick.append(Command(f"hashes-{stem}", hashed, ended_well))
        for shard, expression in {"pairs": "tier5", "rest": "not tier5"}.items():
            selection = () if trial else ("-k", expression)
            if not trial or shard == "rest":
                quick.append(suite(f"quick-{stem}-{shard}", backend, device, "--conformance-quick", *selection))
    yield Part("quick", tuple(quick), together=True)
    recording = [stem for stem in stems if stem[0] in ("torch", "cupy")]
    recorded = list[Command]()
    for backend, device, stem in recording:
        selection = ("-k", "switch or launched") if trial else ()
        recorded.append(pytest(f"graphs-{stem}-tests", f"packages/stsbp-{backend}/tests/test_graphs.py", *selection))
        training = () if trial else ("-k", "tier4 or tier6 or tier8")
        graphs_suite = suite(f"graphs-{stem}-suite", backend, device, "--conformance-quick", *training, graphs=True)
        recorded.append(graphs_suite)
    yield Part("graphs", tuple(recorded), together=True)

    def benchmark(group: str, backend: str, device: str, stem: str) -> Command:
        name, rounds = f"{group}-{stem}", ("--rounds", 1) if trial else ()
        options = ("-m", "stsbp", "--backend", backend, "--device", device, "benchmark", group)
        sizes = ("--scale", settings.scale, *rounds, "--json", out / f"{name}.json")
        return Command(name, python_command(*options, *sizes), rows(name, backend, settings))

    for backend, device, stem in stems:
        yield Part(f"kernels-{stem}", (benchmark("kernels", backend, device, stem),), seconds=180)
    options: tuple[object, ...]
    few_rounds: tuple[object, ...]
    for backend, device, stem in stems:
        name = f"steps-{stem}"
        options = ("--backend", backend, "--device", device, "--scale", settings.scale, "--out", out / f"{name}.json")
        extra = (("--rounds", 1) if trial else ()) + (("--trace",) if backend == "torch" else ())
        command = python_command("benchmarks/gpu/steps.py", *options, *extra)
        yield Part(name, (Command(name, command, rows(name, backend, settings)),), seconds=240)
    shards = [
        suite(f"conformance-{stem}-{shard}", backend, device, "-k", expression)
        for backend, device, stem in stems
        for shard, expression in SHARDS.items()
    ]
    if not trial:
        yield Part("conformance", tuple(shards), together=True)
    if settings.data is not None:
        variables = {"MINUTES": "{minutes}", "PYTHON": sys.executable, "BACKEND": "@".join(settings.backends[0])}
        script = ("bash", "experiments/gpu_cifar10.sh", str(settings.data), str(out / "cifar10"))
        yield Part("cifar10", (Command("cifar10", script, ended_well, variables),))
    for backend, device, stem in stems:
        name = f"scaling-{stem}"
        axes = ("--axes", "T", "--rounds", 1) if trial else ()
        options = ("--backend", backend, "--device", device, "--shrink", settings.shrink, *axes)
        command = python_command("benchmarks/scaling.py", *options, "--out", out / f"{name}.json")
        yield Part(name, (Command(name, command, ended_well),))
        if not trial:
            yield Part(f"data-{stem}", (benchmark("data", backend, device, stem),))
            # Memory and start-up too, which takes minutes.
            yield Part(f"step-{stem}", (benchmark("step", backend, device, stem),))
    if settings.gpus > 1:
        for backend, device, stem in stems:
            name = f"processes-{stem}"
            options = ("--backend", backend, "--device", device, "--sizes", 1, settings.gpus, "--scale", settings.scale)
            command = python_command("benchmarks/processes.py", *options, "--out", out / f"{name}.json")
            yield Part(name, (Command(name, command, ended_well),))
    for peer in ("spikingjelly", "snntorch", "norse", "sinabs", "spyx"):
        if importlib.util.find_spec(peer) is not None:
            options = ("--here", "--peers", peer, "--own", "torch", "--modes", "plain", "step", "neuron")
            few_rounds = ("--rounds", 1, "--cases", "N-MNIST") if trial else ()
            limits = ("--patience", 150, "--scale", settings.scale, "--device", "cpu" if trial else "cuda")
            command = python_command(
                "benchmarks/compare.py", *options, *few_rounds, *limits, "--out", out / f"peer-{peer}.json"
            )
            yield Part(f"peer-{peer}", (Command(f"peer-{peer}", command, ended_well),))


def _registered(module: str) -> bool:
    """Whether pytest finds a plugin by itself: it looks into each folder of metadata, also those that others hide."""
    points = (
        point for distribution in distributions() for point in distribution.entry_points if point.group == "pytest11"
    )
    return any(point.value.startswith(module) for point in points)


@dataclass
class Call:
    """One call of this script: what was found so far, and the time that is left."""

    out: Path
    end: float
    outcomes: dict[str, Outcome]

    @classmethod
    def begin(cls, out: Path, minutes: float) -> Call:
        """Go on with what lies in `out`."""
        path = out / "summary.json"
        outcomes = json.loads(path.read_text())["commands"] if path.is_file() else {}
        return cls(out, time.monotonic() + 60 * minutes, outcomes)

    @property
    def remaining(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def done(self, command: Command) -> bool:
        """Whether a command has ended before with what is no failure."""
        return self.outcomes.get(command.name, {}).get("exit") == 0

    def run(self, part: Part) -> bool:
        """Run what is not done of a part; False: there is no time for it."""
        waiting = [command for command in part.commands if not self.done(command)]
        if waiting and self.remaining < min(60, part.seconds):
            return False
        limit = min(part.seconds, self.remaining) / (1 if part.together else max(1, len(waiting)))
        with ThreadPoolExecutor(max_workers=(len(waiting) or 1) if part.together else 1) as pool:
            # What runs at once shares the cores; a library's threads would keep each other from them.
            threads = str(max(1, (os.cpu_count() or 1) // max(1, len(waiting))))
            shared = {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads} if part.together else {}
            results = pool.map(lambda command: self._run_command(command, limit, shared), waiting)
            for command, outcome in zip(waiting, results, strict=True):
                self.outcomes[command.name] = outcome
                self.save()
                print(f"{command.name}: {outcome['verdict']}, {outcome['seen']} ({outcome['took']} s)", flush=True)
                for row in outcome.get("rows", []):
                    share = "" if row["of_copy"] is None else f", {row['of_copy']:.0%} of copy"
                    times = f"{row['ms']:.3g} ms, expected {row['expected_ms']:.3g}"
                    print(f"    {row['what']}: {times}{share}: {row['verdict']}", flush=True)
                for line in outcome.get("failed", [])[:5]:
                    print(f"    {line}", flush=True)
        return True

    def _run_command(self, command: Command, limit: float, shared: dict[str, str]) -> Outcome:
        began = time.monotonic()
        with (self.out / f"{command.name}.log").open("w") as log:
            print(shlex.join(command.arguments), file=log, flush=True)
            minutes = f"{max(0.5, limit / 60 - 1.25):.2f}"
            variables = {name: value.format(minutes=minutes) for name, value in command.environment.items()}
            environment = {**os.environ, **shared, **variables}
            child = subprocess.Popen(command.arguments, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
            try:
                code = child.wait(limit)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                code = 124
        took = round(time.monotonic() - began, 1)
        outcome: Outcome = {"command": shlex.join(command.arguments), "exit": code, "took": took}
        if code in (75, 124):
            reason = "cut off" if code == 124 else "more to do"
            return {**outcome, "expected": "an end", "seen": f"{reason} after {took:.0f} s", "verdict": reason}
        return {**outcome, **command.judge(self.out, code)}

    def save(self) -> None:
        """Write what was found, whole or not at all."""
        path = self.out / "summary.json"
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps({"format": 1, "commands": self.outcomes}, indent=1) + "\n")
        scratch.replace(path)


def packed(out: Path) -> Path:
    """All results in one file."""
    path = out / "results.tar.gz"
    scratch = path.with_suffix(".new")
    with tarfile.open(scratch, "w:gz") as tar:
        for file in sorted(out.iterdir()):
            if file.suffix in (".json", ".log", ".xml"):
                tar.add(file, file.name)
    scratch.replace(path)
    return path


def settings_of(options: argparse.Namespace) -> Settings:
    """From the command line and the environment."""
    words_of_backends = os.environ.get("BACKENDS") or (
        "torch@cpu jax@cpu cupy@host" if options.trial else "torch@cuda cupy@cuda jax@gpu"
    )
    backends = tuple((name, device) for name, _, device in (word.partition("@") for word in words_of_backends.split()))
    data = os.environ.get("STSBP_DATA")
    has_data = data is not None and (Path(data) / "cifar10").exists() and not options.trial
    return Settings(
        options.out.resolve(),
        backends,
        0.02 if options.trial else float(os.environ.get("SCALE", 1)),
        8 if options.trial else int(os.environ.get("SHRINK", 1)),
        options.trial,
        int(os.environ.get("GPUS") or (1 if options.trial else _gpus())),
        Path(str(data)).resolve() if has_data else None,
    )


def _gpus() -> int:
    try:
        import torch
    except ImportError:
        return 1
    return torch.cuda.device_count()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(description="Everything that wants a GPU, in parts.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of results; the same again goes on")
    parser.add_argument("parts", nargs="*", metavar="PART", help="beginnings of names of parts; default: all")
    parser.add_argument("--minutes", type=float, default=8.0, help="of this call")
    parser.add_argument("--list", action="store_true", help="only list the parts and their commands")
    parser.add_argument("--try", dest="trial", action="store_true", help="each command on the processor, small sizes")
    options = parser.parse_args(arguments)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"missing here: {', '.join(missing)}; put their wheels into a folder and name it in WHEELS (docs/gpu.md)")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    settings = settings_of(options)
    all_parts = [*parts(settings)]
    selected = [part for part in all_parts if not options.parts or part.name.startswith(tuple(options.parts))]
    if not selected:
        parser.error(
            f"no part begins with {' or '.join(options.parts)}; there are {', '.join(p.name for p in all_parts)}"
        )
    if options.list:
        for part in selected:
            print(f"{part.name}, at most {part.seconds} s{', at once' if part.together else ''}")
            for command in part.commands:
                print(f"    {shlex.join(command.arguments)}")
        return 0
    call = Call.begin(settings.out, options.minutes)
    complete = True
    for part in selected:
        complete &= call.run(part)
    verdicts = [call.outcomes.get(command.name) for part in selected for command in part.commands]
    failed = [
        command.name for part in selected for command in part.commands if _failed(call.outcomes.get(command.name))
    ]
    open_ = any(outcome is None or outcome["exit"] in (75, 124) for outcome in verdicts)
    print(f"results in {packed(settings.out)}; failed: {', '.join(failed) or 'nothing'}")
    if failed:
        return 1
    return 75 if open_ or not complete else 0


def _failed(outcome: Outcome | None) -> bool:
    return outcome is not None and (outcome["verdict"] == "failed" or outcome["exit"] not in (0, 75, 124))


if __name__ == "__main__":
    sys.exit(main())
